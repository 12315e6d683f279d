"""Results as charts and tables: compared with teacher and baselines, over steps, and over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from pipeline.common.errors import UserError
from pipeline.evaluate.retrieval import interval
from pipeline.report import svg as charts
from pipeline.report.sentences import baselines, majority_share, parameters
from pipeline.report.tables import TableCell, table
from pipeline.runs.artifacts import Embeddings
from pipeline.runs.compare import RULE, Comparison, group_by_method
from pipeline.runs.reader import (
    NAMES,
    RETRIEVAL_METRICS,
    Run,
    format_metric,
    is_fraction,
    key_metrics,
    random_order,
)

UNLOGGED = {"step", "epoch", "seconds", "peak_memory_mib", "energy_joules"}
"""Logged values that are not plotted."""

TILES = "student/top1", "student/mIoU", "student/probe", "retrieval/student_to_teacher/R@1"
"""Results shown as large tiles; `RETRIEVAL_TILES` is used for runs without labels."""

RETRIEVAL_TILES = tuple(f"retrieval/student_to_teacher/{name}" for name in ("R@1", "R@5", "R@10", "median_rank"))


def fractions(run: Run) -> list[str]:
    """The key metrics of the run that are fractions."""
    return [metric for metric in key_metrics(run.results) if is_fraction(metric)]


def main_metric(run: Run) -> str | None:
    """The first key metric of the run that is a fraction."""
    return next(iter(fractions(run)), None)


def tiles(run: Run) -> str:
    """The main numbers, as HTML."""
    results = run.results
    found = []
    for metric in TILES if (main_metric(run) or "").startswith("student/") else RETRIEVAL_TILES:
        if metric in results:
            beside = [f"{n} {format_metric(metric, v)}" for n, v in references(results, metric)]
            found.append((NAMES[metric], format_metric(metric, results[metric]), " · ".join(beside[:2])))
    if size := results.get("parameters/student"):
        teacher = results.get("parameters/teacher")
        times = f"teacher {parameters(teacher)}, {teacher / size:.2g} x" if teacher else ""
        found.append(("parameters", parameters(size), times))
    body = "".join(
        f'<div class="card tile"><span>{escape(name)}</span><b>{value}</b><span>{escape(beside)}</span></div>'
        for name, value, beside in found
    )
    return f'<div class="tiles">{body}</div>' if found else ""


def references(results: dict[str, float], metric: str) -> list[tuple[str, float]]:
    """The references for a metric: the teacher, the baselines, and the student with random weights."""
    own = metric.removeprefix("student/")
    found = [("teacher", results.get(f"teacher/{own}"))] if metric.startswith("student/") else []
    found += [(name, value) for name, value in baselines(results, metric).items()]
    found += [("untrained", results.get(f"random/{own}"))]
    if metric in RETRIEVAL_METRICS:
        found += [("chance", results.get(random_order(metric)))]
    return [(name, value) for name, value in found if value is not None]


def chart(runs: Sequence[Run], names: Sequence[str], metric: str, embeddings: Embeddings | None) -> str:
    """A card with bars for one metric: runs, teacher and baselines; empty if no run has it."""
    n = runs[0].results.get("samples/test")

    def bar(name: str, value: float, kind: str) -> charts.Bar:
        # Balanced accuracy is not a proportion of samples, and the share of the most frequent class is not an estimate.
        known = n and metric != "student/balanced" and not name.startswith("always") and name != "chance"
        low, high = interval(value, n) if known and n else (value, value)
        return charts.Bar(name, value, format_metric(metric, value), kind, low, high)

    rows = [
        bar(name, run.results[metric], "other" if i else "main")
        for i, (run, name) in enumerate(zip(runs, names, strict=True))
        if metric in run.results
    ]
    if not rows:
        return ""
    # Skip baselines that are also among the runs.
    beside = [(name, v) for name, v in references(runs[0].results, metric) if name not in [row.label for row in rows]]
    if metric == "student/top1" and (share := majority_share(embeddings)) is not None:
        beside.append(("always the most frequent class", share))
    rows += [bar(name, value, "teacher" if name == "teacher" else "") for name, value in beside]
    title = NAMES[metric]
    return f'<div class="card"><h4>{title}</h4>{charts.bars(rows, 1, title)}</div>'


def retrieval_table(run: Run) -> str:
    """Recalls and median rank in both directions, next to an untrained student and chance, as HTML."""
    results = run.results
    rows: list[list[TableCell]] = []
    for metric, name in RETRIEVAL_METRICS.items():
        if metric in results:
            columns = (metric, f"random/{metric}", random_order(metric))
            rows.append([name, *(_with_interval(results, metric, key) for key in columns)])
    if not rows:
        return ""
    words = "Retrieval of the true pair among all test samples. In brackets: 95 % confidence interval over the queries "
    words += "(Wilson; bootstrap for the median rank). Untrained: the student's architecture with random weights."
    shown = table(["metric", "student", "untrained", "chance"], rows)
    return f'<h3>Retrieval</h3><p class="hint">{words}</p><div class="scroll">{shown}</div>'


def _with_interval(results: dict[str, float], metric: str, key: str) -> TableCell:
    if (value := results.get(key)) is None:
        return "-"
    ends = [results.get(f"{key}_{end}") for end in ("low", "high")]
    known = [format_metric(metric, end) for end in ends if end is not None]
    return value, format_metric(metric, value) + (f" [{known[0]} to {known[1]}]" if len(known) == 2 else "")


def comparison(runs: Sequence[Run]) -> str:
    """Mean and standard deviation over seeds and paired differences, as HTML; empty for one run."""
    if len(runs) < 2:
        return ""
    try:
        groups = group_by_method(runs)
    except UserError as error:
        return f'<p class="hint">No comparison over seeds: {escape(str(error))}</p>'
    present = {key for run in runs for key in run.results}
    metrics = key_metrics(present)
    found = Comparison(groups, metrics, groups[0], ())
    tables = [
        f'<div class="scroll">{table(head, rows)}</div>'
        for head, *rows in (found.rows(), found.difference_rows())
        if rows
    ]
    return f'{"".join(tables)}<p class="hint">{escape(RULE)}</p>' if metrics else ""


def curves(runs: Sequence[Run], names: Sequence[str]) -> str:
    """A chart of every logged value over steps, by kind, as HTML."""
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
        cards = grid([curve(runs, key) for key in members])
        if members and heading == "Optimisation":  # many charts that are rarely read
            parts.append(f"<details><summary>{heading}</summary>{cards}</details>")
        elif members:
            parts.append(f"<h3>{heading}</h3>{cards}")
    return '<p class="hint">Over optimiser steps.</p>' + "".join(parts)


def _keys(run: Run) -> set[str]:
    return {key for row in run.log.values() for key in row} - UNLOGGED


def curve(runs: Sequence[Run], key: str) -> str:
    """A card with one value over steps."""
    last = runs[0].last(key)
    value = "" if last is None else f"<span>last {last:.4g}</span>"
    name = escape(key).replace("/", "/<wbr>")
    body = charts.lines([run.series(key) for run in runs], key) or '<p class="hint">No finite value was logged.</p>'
    return f'<div class="card"><h4><code>{name}</code>{value}</h4>{body}</div>'


def numbers(runs: Sequence[Run], names: Sequence[str]) -> str:
    """A table of all results of all runs, as HTML; empty if there are none."""
    rows: list[list[TableCell]] = [
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
    """Arrange cards in a grid, as HTML."""
    return f'<div class="grid">{"".join(cards)}</div>'


def legend(names: Sequence[str]) -> str:
    """The names of the runs in their colours, as HTML."""
    items = "".join(f'<span><i class="s{i}"></i><b>{escape(name)}</b></span>' for i, name in enumerate(names))
    return f'<div class="legend">{items}</div>'
