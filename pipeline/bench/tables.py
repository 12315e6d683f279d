"""The tables of a benchmark as Markdown, CSV and LaTeX, with methods as rows and pairs as columns, and a plot."""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.bench.crossed import METRIC, crossed
from pipeline.common.files import write_atomic
from pipeline.runs.compare import Comparison, Difference, SeedStatistics, markdown_table
from pipeline.runs.reader import KEY_METRICS, is_fraction

TEACHER = "teacher"
MARKS = {"better": "▲", "worse": "▼"}
LATEX_MARKS = {"better": r"$^{\uparrow}$", "worse": r"$^{\downarrow}$"}

Column = tuple[str, Callable[["Entry"], str]]
"""A suffix for the name of the pair, and a function that formats an entry."""


@dataclass(frozen=True)
class Tuned:
    """The settings that a random search has chosen for a method.

    Attributes:
        values: `LOSS.SETTING` -> value.
        score: Its score: the metric on `split`.
        split: The split on which the trials were scored.
        trials: Number of trials.
        outer: The settings whose value is close to an end of their range.
    """

    values: Mapping[str, Any]
    score: float
    split: str
    trials: int
    outer: tuple[str, ...] = ()

    def __str__(self) -> str:
        shown = {name: f"{value:g}" if isinstance(value, float) else value for name, value in self.values.items()}
        return ", ".join(f"{name} = {value}" for name, value in shown.items())


@dataclass(frozen=True)
class Entry:
    """One method of one pair.

    Attributes:
        pair: Name of the pair.
        method: Name of the method.
        metric: Key of results.json.
        baseline: Name of the baseline.
        value: The metric over the seeds.
        difference: Paired difference from the baseline; None for the baseline and the teacher.
        published: A published result in per cent.
        seconds: Seconds per training step, median over the seeds; None if unknown.
        memory: Peak memory in MiB of the GPU or the process, median over the seeds; None if unknown.
        tuned: The chosen settings; None if the method was not tuned.
        crossed: 95 % interval of the difference over seeds and test samples; None if it is unknown.
    """

    pair: str
    method: str
    metric: str
    baseline: str
    value: SeedStatistics | None
    difference: Difference | None
    published: float | None
    seconds: float | None
    memory: float | None
    tuned: Tuned | None = None
    crossed: tuple[float, float] | None = None


def entries(
    tables: Mapping[str, Comparison],
    metric: str,
    published: Mapping[str, Mapping[str, float]] | None = None,
    tuned: Mapping[tuple[str, str], Tuned] | None = None,
) -> list[Entry]:
    """Collect one metric from the comparisons of all pairs, with the teacher of each pair first.

    Args:
        tables: Pair -> comparison of its methods.
        metric: Key of results.json.
        published: Pair -> method or `teacher` -> result in per cent.
        tuned: Pair and method -> the chosen settings.
    """
    found = []
    for pair, table in tables.items():
        figures = (published or {}).get(pair, {})
        teacher = metric.replace("student/", "teacher/")
        taught = next((cell for group in table.groups if (cell := group.cell(teacher))), None)
        # All cells evaluate the same teacher.
        value = SeedStatistics(taught.mean, None, 1) if taught else None
        named = (metric, table.baseline.name)
        found.append(Entry(pair, TEACHER, *named, value, None, figures.get(TEACHER), None, None))
        for group in table.groups:
            seconds, memory = (
                statistics.median(values.values()) if (values := group.by_seed(f"train/{cost}")) else None
                for cost in ("seconds_per_step", "peak_memory_mib")
            )
            difference = table.difference(group, metric)
            figure = figures.get(group.name)
            chosen = (tuned or {}).get((pair, group.name))
            value, both = group.cell(metric), crossed(group, table.baseline) if metric == METRIC else None
            found.append(Entry(pair, group.name, *named, value, difference, figure, seconds, memory, chosen, both))
    return found


def write(found: Sequence[Entry], out: Path) -> None:
    """Write `table.md`, `table.csv`, `table.tex` and `plot.png` to a folder."""
    write_atomic(out / "table.md", markdown(found).encode())
    write_atomic(out / "table.csv", as_csv(found).encode())
    write_atomic(out / "table.tex", latex(found).encode())
    write_atomic(out / "plot.png", plot(found))


def markdown(found: Sequence[Entry]) -> str:
    """Format results with marks, paired differences and the cost of a step as Markdown, with a legend."""
    baseline = found[0].baseline
    seeds = max((entry.value.n for entry in found if entry.value), default=0)
    legend = (
        f"Mean ± sample standard deviation over {seeds} seeds; differences are paired by seed, with their 95 % paired "
        f"t interval. {MARKS['better']} better and {MARKS['worse']} worse than {baseline}: the interval does not "
        "contain 0. There is no correction for multiple comparisons: about one in twenty comparisons of equal methods "
        "will look significant by chance."
    )
    if any(entry.published is not None for entry in found):
        legend += " In brackets: published results."
    blocks = [
        markdown_table(_results(found, "±", MARKS)),
        markdown_table(_grid(found, f"minus {baseline}", [("", _shown_difference)], no_teacher=True)),
        markdown_table(_grid(found, "cost", [("ms per step", _milliseconds), ("MiB", _mebibytes)], no_teacher=True)),
    ]
    if any(entry.crossed for entry in found):
        corner = f"minus {baseline}, over seeds and test samples"
        blocks.insert(2, markdown_table(_grid(found, corner, [("", _shown_crossed)], no_teacher=True)))
        legend += (
            " Over seeds and test samples: 95 % interval for other seeds and other test samples, which are assumed to "
            "be independent."
        )
    if any(entry.tuned for entry in found):
        blocks.append(markdown_table(_tuning(found)))
    return "\n".join([*blocks, f"{legend}\n"])


def latex(found: Sequence[Entry]) -> str:
    """Format the results as a `tabular` for the package booktabs, with arrows as marks."""
    header, *rows = _results(found, r"$\pm$", LATEX_MARKS)
    names = [_escaped(name) for name in header]
    lines = [" & ".join([_escaped(row[0]), *row[1:]]) + r" \\" for row in rows]
    columns = "l" + "r" * (len(header) - 1)
    head = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", " & ".join(names) + r" \\", r"\midrule"]
    return "\n".join([*head, *lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def as_csv(found: Sequence[Entry]) -> str:
    """One line per pair and method, with all digits and in the units of `results.json`; `published` is in per cent."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    numbers = ("mean", "std", "n", "difference", "difference std", "low", "high", "common seeds", "verdict")
    costs = ("seconds per step", "peak memory MiB")
    crossed_ends = ("low over seeds and samples", "high over seeds and samples")
    writer.writerow(["pair", "method", "metric", "baseline", *numbers, "published", *costs, "tuned", *crossed_ends])
    for entry in found:
        value, diff = entry.value, entry.difference
        row: list[object] = [entry.pair, entry.method, entry.metric, entry.baseline]
        row += [value.mean, value.std, value.n] if value else [None] * 3
        row += [diff.mean, diff.std, diff.low, diff.high, diff.n, diff.verdict] if diff else [None] * 6
        row += [entry.published, entry.seconds, entry.memory, entry.tuned]
        writer.writerow([*row, *(entry.crossed or (None, None))])
    return text.getvalue()


def plot(found: Sequence[Entry]) -> bytes:
    """Plot each method's mean and standard deviation, the teacher and published results as PNG, one panel per pair."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pairs, methods = _names(found)
    methods.remove(TEACHER)
    scale = 100 if is_fraction(found[0].metric) else 1
    size = (2 + 3 * len(pairs), 1.2 + 0.28 * len(methods))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(pairs), sharey=True, squeeze=False)[0]
    for axes, pair in zip(panels, pairs, strict=True):
        for entry in (e for e in found if e.pair == pair and e.value):
            assert entry.value is not None
            mean = entry.value.mean * scale
            if entry.method == TEACHER:
                axes.axvline(mean, color="#b5703a", lw=1.5, label=TEACHER)
                continue
            row = methods.index(entry.method)
            significant = entry.difference is not None and entry.difference.verdict in MARKS
            colour = "#2f6f8f" if significant or entry.difference is None else "#8fb3c4"
            axes.errorbar(mean, row, xerr=(entry.value.std or 0) * scale, fmt="o", color=colour, capsize=2)
            if entry.published is not None:
                axes.plot(entry.published, row, "D", color="#555555", mfc="none")
        axes.set_title(_drawn(pair), fontsize=9)
        axes.set_xlabel(_metric_name(found[0].metric))
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(methods)), [_drawn(name) for name in methods])
    panels[0].invert_yaxis()
    words = f"line: teacher; pale: not significantly different from {_drawn(found[0].baseline)}"
    figure.supxlabel(words + ("; diamond: published" if any(e.published for e in found) else ""), fontsize=7)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _results(found: Sequence[Entry], plus_minus: str, marks: Mapping[str, str]) -> list[list[str]]:
    def shown(entry: Entry) -> str:
        mark = marks.get(entry.difference.verdict, "") if entry.difference else ""
        published = "" if entry.published is None else f"({entry.published:.2f})"
        return " ".join(filter(None, [_shown(entry.value, entry.metric, plus_minus), mark, published]))

    return _grid(found, _metric_name(found[0].metric), [("", shown)])


def _grid(found: Sequence[Entry], corner: str, columns: Sequence[Column], no_teacher: bool = False) -> list[list[str]]:
    """Rows of text with a header: methods as rows and `columns` for each pair; transposed if there are more pairs."""
    pairs, methods = _names(found)
    turned = len(pairs) > len(methods)
    if no_teacher:
        methods.remove(TEACHER)
    cells = {(entry.pair, entry.method): entry for entry in found}
    header = [corner, *(f"{pair} {name}".rstrip() for pair in pairs for name, _ in columns)]
    rows = [[m, *(show(cells[p, m]) for p in pairs for _, show in columns)] for m in methods]
    return [list(row) for row in zip(header, *rows, strict=True)] if turned else [header, *rows]


def _tuning(found: Sequence[Entry]) -> list[list[str]]:
    """Rows of text with a header: the chosen settings, and which of them suggest a larger range."""
    rows = [["tuned", "pair", "trials", "chosen", f"{_metric_name(found[0].metric)} on the split", "note"]]
    for entry in found:
        if (own := entry.tuned) is not None:
            score = f"{own.split}: {(100 if is_fraction(entry.metric) else 1) * own.score:.2f}"
            note = f"{', '.join(own.outer)} near the end of its range: extend the range" if own.outer else ""
            rows.append([entry.method, entry.pair, str(own.trials), str(own), score, note])
    return rows


def _names(found: Sequence[Entry]) -> tuple[list[str], list[str]]:
    return list(dict.fromkeys(e.pair for e in found)), list(dict.fromkeys(e.method for e in found))


def _shown(cell: SeedStatistics | Difference | None, metric: str, plus_minus: str = "±", signed: bool = False) -> str:
    if cell is None:
        return "-"
    scale = 100 if is_fraction(metric) else 1
    spread = "" if cell.std is None else f" {plus_minus} {scale * cell.std:.2f}"
    return f"{scale * cell.mean:{'+' if signed else ''}.2f}{spread}"


def _shown_difference(entry: Entry) -> str:
    shown, difference = _shown(entry.difference, entry.metric, signed=True), entry.difference
    if difference is not None and difference.low is not None and difference.high is not None:
        scale = 100 if is_fraction(entry.metric) else 1
        shown += f" [{scale * difference.low:+.2f}, {scale * difference.high:+.2f}]"
    return f"{shown}: {difference.verdict}" if difference else shown


def _shown_crossed(entry: Entry) -> str:
    if entry.crossed is None:
        return "-"
    low, high = (100 * end for end in entry.crossed)
    return f"[{low:+.2f}, {high:+.2f}]"


def _milliseconds(entry: Entry) -> str:
    return "-" if entry.seconds is None else f"{1000 * entry.seconds:.0f}"


def _mebibytes(entry: Entry) -> str:
    return "-" if entry.memory is None else f"{entry.memory:.0f}"


def _metric_name(metric: str) -> str:
    return KEY_METRICS.get(metric, metric) + (" %" if is_fraction(metric) else "")


def _escaped(name: str) -> str:
    """Escape a name for LaTeX."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return re.sub(r"[\\~^&%$#_{}]", lambda found: special.get(found[0], f"\\{found[0]}"), name)


def _drawn(name: str) -> str:
    """Escape a name for Matplotlib, which reads text between `$` as a formula."""
    return name.replace("$", r"\$")
