"""The table of `wcord bench --quick`, and its answer in one sentence."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.evaluate.retrieval import interval
from pipeline.runs.artifacts import read_confusion
from pipeline.runs.compare import Difference, markdown_table, paired_difference
from pipeline.runs.reader import NAMES, Run

LABELS, UNTRAINED = "labels", "untrained"
RECALL = "retrieval/student_to_teacher/R@10"


@dataclass(frozen=True)
class Row:
    """A method in the table.

    Attributes:
        method: Its name.
        values: Seed -> result.
        ends: 95 % interval of the mean over the test samples; None if it is unknown.
        difference: Minus the reference, paired by seed; None for the reference.
    """

    method: str
    values: dict[int, float]
    ends: tuple[float, float] | None
    difference: Difference | None

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values.values())


def rows_of(runs: Mapping[str, Sequence[Run]], metric: str, *, labelled: bool) -> list[Row]:
    """The rows of the table: the reference, then the methods.

    Args:
        runs: Method -> its runs.
        metric: Key of `results.json`.
        labelled: Whether the reference is the method `labels`, which is the first one; else it is an untrained student.
    """
    found = {method: _by_seed(own, metric) for method, own in runs.items()}
    some = next(iter(runs.values()))
    if not labelled:
        found = {UNTRAINED: _by_seed(some, f"random/{metric}"), **found}
    samples = _test_samples(some[0], metric)
    reference, *methods = (name for name, values in found.items() if values)
    rows = [Row(reference, found[reference], _ends(found[reference], samples), None)]
    for method in methods:
        own = [found[method][seed] - found[reference][seed] for seed in sorted(found[method])]
        rows.append(Row(method, found[method], _ends(found[method], samples), paired_difference(own)))
    return rows


def _by_seed(runs: Sequence[Run], metric: str) -> dict[int, float]:
    return {run.seed or 0: run.results[metric] for run in runs if metric in run.results}


def _test_samples(run: Run, metric: str) -> float | None:
    """Number of test samples of a proportion; None for mIoU, which is not one."""
    if metric == RECALL:
        return run.results["samples/test"]
    counts = read_confusion(run.folder)
    return float(counts.roles["student"].sum()) if metric == "student/top1" and counts else None


def _ends(values: Mapping[int, float], samples: float | None) -> tuple[float, float] | None:
    return interval(statistics.fmean(values.values()), samples) if samples else None


def table(rows: Sequence[Row], metric: str) -> str:
    """Format rows as Markdown, in per cent.

    Args:
        rows: The reference, then the methods.
        metric: Key of `results.json`.
    """
    reference = _shown_name(rows[0].method)
    header = ["method", f"{NAMES.get(metric, metric)} %", "95 % interval of the test split", f"minus {reference}"]
    lines = [
        [
            row.method,
            f"{100 * row.mean:.1f}",
            "-" if row.ends is None else f"[{100 * row.ends[0]:.1f}, {100 * row.ends[1]:.1f}]",
            "-" if row.difference is None else f"{100 * row.difference.mean:+.1f}",
        ]
        for row in rows
    ]
    return markdown_table([header, *lines])


def verdict(rows: Sequence[Row], steps: int, full: int) -> str:
    """One sentence: which method leads, and whether its difference from the reference exceeds the intervals.

    Args:
        rows: The reference, then the methods.
        steps: Number of steps of the runs.
        full: Number of steps of the config.
    """
    reference, best = rows[0], max(rows[1:], key=lambda row: row.mean)
    after = f"After {steps} steps" + (f" (the config has {full})" if steps != full else "")
    name, points = _shown_name(reference.method), 100 * (best.mean - reference.mean)
    if points > 0:
        lead = f"{best.method} leads, {points:.1f} points above {name}"
    else:
        lead = f"{name} leads, {-points:.1f} points above {best.method}, the best method with the teacher"
    return f"{after}, {lead}: {_weighed(best, reference)}{_caveat(len(best.values))}."


def _weighed(best: Row, reference: Row) -> str:
    """Whether the difference exceeds the interval over seeds or, with one seed, those over the test samples."""
    difference = best.difference
    if difference is not None and difference.low is not None and difference.high is not None:
        ends = f"[{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
        known = "not more" if difference.low <= 0 <= difference.high else "more"
        return f"{known} than the variation between seeds explains (95 % interval of the paired difference {ends})"
    if best.ends is None or reference.ends is None:
        return "there is no interval for this metric"
    if max(best.ends[0], reference.ends[0]) > min(best.ends[1], reference.ends[1]):
        return "more than the choice of test samples explains (the 95 % intervals do not overlap)"
    return "not more than the choice of test samples may explain (the 95 % intervals overlap)"


def _caveat(seeds: int) -> str:
    return ", but this is one seed, and the variation between seeds is unknown" if seeds == 1 else ""


def _shown_name(method: str) -> str:
    return {LABELS: "labels only", UNTRAINED: "an untrained student"}.get(method, method)
