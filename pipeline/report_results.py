"""Results as charts and tables: against teacher and baselines, over steps, and over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from pipeline import charts
from pipeline.compare import RULE, Comparison, group_by_method
from pipeline.errors import UserError
from pipeline.report_samples import Embeddings
from pipeline.report_tables import Cell, table
from pipeline.report_words import baselines, majority_share, parameters
from pipeline.runs import KEY_METRICS, Run, in_words, is_fraction

UNLOGGED = {"step", "epoch", "seconds", "peak_memory_mib", "energy_joules"}
"""What log lines have and no curve shows."""

FRACTIONS = [metric for metric in KEY_METRICS if is_fraction(metric)]


def main_metric(run: Run) -> str | None:
    """The first of the key metrics that the run has, as a share."""
    return next((metric for metric in FRACTIONS if metric in run.results), None)


def interval(share: float, n: float, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share of `n` samples (Wilson 1927)."""
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def tiles(run: Run) -> str:
    """The few numbers that a person looks for first."""
    results = run.results
    found = []
    for metric in ("student/top1", "student/mIoU", "student/probe", "retrieval/student_to_teacher/R@1"):
        if metric in results:
            beside = [f"{n} {in_words(metric, v)}" for n, v in references(results, metric)]
            found.append((KEY_METRICS[metric], in_words(metric, results[metric]), " · ".join(beside[:2])))
    if size := results.get("parameters/student"):
        teacher = results.get("parameters/teacher")
        times = f"teacher {parameters(teacher)}, {teacher / size:.2g} times as many" if teacher else ""
        found.append(("parameters", parameters(size), times))
    body = "".join(
        f'<div class="card tile"><span>{escape(name)}</span><b>{value}</b><span>{escape(beside)}</span></div>'
        for name, value, beside in found
    )
    return f'<div class="tiles">{body}</div>' if found else ""


def references(results: dict[str, float], metric: str) -> list[tuple[str, float]]:
    """What a metric is held against: teacher, each baseline, the student with random weights."""
    own = metric.removeprefix("student/")
    found = [("teacher", results.get(f"teacher/{own}"))] if metric.startswith("student/") else []
    found += [(name, value) for name, value in baselines(results, metric).items()]
    found += [("untrained", results.get(f"random/{own}"))]
    return [(name, value) for name, value in found if value is not None]


def chart(runs: Sequence[Run], names: Sequence[str], metric: str, embeddings: Embeddings | None) -> str:
    """A card of bars for one metric: the runs, the teacher, the baselines; "" where no run has it."""
    n = runs[0].results.get("samples/test")

    def bar(name: str, value: float, kind: str) -> charts.Bar:
        # The balanced accuracy is no share of samples, and the commonest class is no estimate.
        known = n and metric != "student/balanced" and not name.startswith("always")
        low, high = interval(value, n) if known and n else (value, value)
        return charts.Bar(name, value, in_words(metric, value), kind, low, high)

    rows = [
        bar(name, run.results[metric], "other" if i else "main")
        for i, (run, name) in enumerate(zip(runs, names, strict=True))
        if metric in run.results
    ]
    if not rows:
        return ""
    # A baseline that is also one of the runs stands there already.
    beside = [(name, v) for name, v in references(runs[0].results, metric) if name not in [row.label for row in rows]]
    if metric == "student/top1" and (share := majority_share(embeddings)) is not None:
        beside.append(("always the commonest class", share))
    rows += [bar(name, value, "teacher" if name == "teacher" else "") for name, value in beside]
    title = KEY_METRICS[metric]
    return f'<div class="card"><h4>{title}</h4>{charts.bars(rows, 1, title)}</div>'


def comparison(runs: Sequence[Run]) -> str:
    """Mean and spread over seeds of several runs, and the paired differences from the first method; "" for one run."""
    if len(runs) < 2:
        return ""
    try:
        groups = group_by_method(runs)
    except UserError as error:
        return f'<p class="hint">No comparison over seeds: {escape(str(error))}</p>'
    present = {key for run in runs for key in run.results}
    metrics = tuple(metric for metric in KEY_METRICS if metric in present)
    found = Comparison(groups, metrics, groups[0], ())
    tables = [
        f'<div class="scroll">{table(head, rows)}</div>'
        for head, *rows in (found.rows(), found.difference_rows())
        if rows
    ]
    return f'{"".join(tables)}<p class="hint">{escape(RULE)}</p>' if metrics else ""


def curves(runs: Sequence[Run], names: Sequence[str]) -> str:
    """A chart of every logged value over steps, by kind."""
    keys = sorted({key for run in runs for key in _keys(run)})
    groups: dict[str, list[str]] = {"Losses": [], "Validation": [], "Diagnostics": [], "Optimisation": []}
    for key in keys:
        head = key.split("/")[0]
        kinds = {"loss": "Losses", "held_out": "Validation"}
        groups[kinds.get(head, "Diagnostics" if "/" in key else "Optimisation")].append(key)
    if not keys:
        return "<p>No curves: <code>metrics.jsonl</code> is missing or empty. <code>wcord train</code> writes it.</p>"
    parts = [legend(names)] if len(runs) > 1 else []
    for heading, members in groups.items():
        if members:
            parts.append(f"<h3>{heading}</h3>{grid([curve(runs, key) for key in members])}")
    return '<p class="hint">Over optimiser steps.</p>' + "".join(parts)


def _keys(run: Run) -> set[str]:
    return {key for row in run.log.values() for key in row} - UNLOGGED


def curve(runs: Sequence[Run], key: str) -> str:
    """One value over steps, in a card."""
    last = runs[0].last(key)
    value = "" if last is None else f"<span>last {last:.4g}</span>"
    name = escape(key).replace("/", "/<wbr>")
    body = charts.lines([run.series(key) for run in runs], key) or '<p class="hint">No finite value was logged.</p>'
    return f'<div class="card"><h4><code>{name}</code>{value}</h4>{body}</div>'


def numbers(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Every result of every run; "" if there are none."""
    rows: list[list[Cell]] = [
        [key, *((v, _plain(v)) if (v := run.results.get(key)) is not None else "-" for run in runs)]
        for key in sorted({key for run in runs for key in run.results})
    ]
    if not rows:
        return ""
    shown = table(["name", *names], rows, code=True)
    return f'<p class="hint">As in <code>results.json</code>.</p><div class="scroll">{shown}</div>'


def _plain(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.6g}"


def grid(cards: Sequence[str]) -> str:
    """Charts side by side, as HTML."""
    return f'<div class="grid">{"".join(cards)}</div>'


def legend(names: Sequence[str]) -> str:
    """The runs' names in their colours, as HTML."""
    items = "".join(f'<span><i class="s{i}"></i><b>{escape(name)}</b></span>' for i, name in enumerate(names))
    return f'<div class="legend">{items}</div>'
