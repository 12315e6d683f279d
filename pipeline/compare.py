"""Runs side by side: mean and spread over seeds, and whether a difference is more than noise."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.runs import KEY_METRICS, Run, distinct, is_fraction, lower_is_better, read_run
from pipeline.shards import write_atomic

if TYPE_CHECKING:
    from rich.console import Group as Renderable

RULE = (
    "A cell is mean ± sample standard deviation (number of seeds). A difference is paired, method minus baseline "
    "at the same seed: mean ± sample standard deviation [95 % paired t interval, mean ± t(0.975, n-1) · std / √n] "
    "(number of common seeds). It is within noise if that interval holds 0; with fewer than two common seeds there is "
    "no verdict, nor where results were not measured on the same. Every comparison stands alone: of twenty between "
    "equal methods, one is expected to look different."
)
SIZES = ("parameters/", "samples/")


@dataclass(frozen=True)
class Cell:
    """A metric over the seeds of a group; `std` is the sample standard deviation, None for one seed."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """Group minus baseline, paired by seed; `low` and `high` bound the 95 % paired t interval, None under two seeds."""

    mean: float
    std: float | None
    n: int
    low: float | None
    high: float | None
    verdict: str


@dataclass(frozen=True)
class Group:
    """Runs that differ only by seed."""

    name: str
    runs: tuple[Run, ...]

    def cell(self, metric: str) -> Cell | None:
        """Mean and standard deviation of a result over the seeds; None where no run has it."""
        values = [run.results[metric] for run in self.runs if metric in run.results]
        if not values:
            return None
        return Cell(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    def by_seed(self, metric: str) -> dict[int, float]:
        """Seed -> the result of its run."""
        return {r.seed: r.results[metric] for r in self.runs if metric in r.results and r.seed is not None}


@dataclass(frozen=True)
class Comparison:
    """Groups as rows, metrics as columns. notes: what is missing of the runs, or keeps them apart, a sentence each."""

    groups: tuple[Group, ...]
    metrics: tuple[str, ...]
    baseline: Group
    notes: tuple[str, ...]

    def difference(self, group: Group, metric: str) -> Difference | None:
        """Group minus baseline; None for the baseline itself, for sizes, and where no seed is common."""
        if group is self.baseline or metric.startswith(SIZES):
            return None
        ours, theirs = group.by_seed(metric), self.baseline.by_seed(metric)
        differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
        if not differences:
            return None
        found = paired_difference(differences, lower_is_better(metric))
        return replace(found, verdict="no verdict") if measured_apart(group, self.baseline) else found

    def rows(self) -> list[list[str]]:
        """The table of results as text, its header first."""
        header = ["method", *(_header(metric) for metric in self.metrics)]
        return [header, *([g.name, *(_cell(g.cell(m), m) for m in self.metrics)] for g in self.groups)]

    def difference_rows(self) -> list[list[str]]:
        """The table of paired differences as text, its header first; only a header if there is nothing to compare."""
        metrics = [m for m in self.metrics if any(self.difference(g, m) for g in self.groups)]
        others = [g for g in self.groups if g is not self.baseline] if metrics else []
        header = [f"minus {self.baseline.name}", *(_header(metric) for metric in metrics)]
        return [header, *([g.name, *(_difference(self.difference(g, m), m) for m in metrics)] for g in others)]

    def terminal(self) -> Renderable:
        """Both tables, the rule and the notes for `rich.print`."""
        from rich.box import SIMPLE_HEAD
        from rich.console import Group as Lines
        from rich.table import Table
        from rich.text import Text

        tables = []
        for header, *rows in (self.rows(), self.difference_rows()):
            table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
            for i, name in enumerate(header):
                # No word is broken, down to 80 columns.
                width = max(len(word) for word in name.split()) if i else None
                table.add_column(Text(name), justify="right" if i else "left", min_width=width, no_wrap=i == 0)
            for row in rows:
                table.add_row(*(Text(cell) for cell in row))
            if rows:
                tables.append(table)
        return Lines(*tables, Text(RULE, style="dim"), *(Text(f"note: {note}") for note in self.notes))

    def markdown(self) -> str:
        """Both tables, the rule and the notes as Markdown."""
        blocks = [markdown_table(rows) for rows in (self.rows(), self.difference_rows()) if len(rows) > 1]
        return "\n".join([*blocks, RULE + "\n", *(f"- {note}" for note in self.notes)]).rstrip() + "\n"

    def csv(self) -> str:
        """One line a group, every number in full and in the units of `results.json`."""
        columns = ("mean", "std", "n", "difference", "difference std", "low", "high", "common seeds", "verdict")
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["method", "seeds", *(f"{m} {column}" for m in self.metrics for column in columns)])
        for group in self.groups:
            row: list[object] = [group.name, " ".join(str(run.seed) for run in group.runs)]
            for metric in self.metrics:
                cell, diff = group.cell(metric), self.difference(group, metric)
                row += [cell.mean, cell.std, cell.n] if cell else [None] * 3
                row += [diff.mean, diff.std, diff.low, diff.high, diff.n, diff.verdict] if diff else [None] * 6
            writer.writerow(row)
        return text.getvalue()


def compare(runs: Sequence[Path], out: Path | None = None, baseline: str | None = None) -> Comparison:
    """Group runs by method, and compare each with a baseline, paired by seed.

    Runs whose configs differ only in `seed`, `run`, `evaluation.baselines` and the name of a cache are one method,
    named as the first one's folder without its seed. baseline: the name of a method, by default the first. With `out`,
    a folder, `table.md`, `table.csv` and `plot.png` are written there.

    A difference is "within noise" if its 95 % paired t interval over the common seeds holds 0, otherwise "better" or
    "worse"; under two common seeds, or where the two were not measured on the same, it is "no verdict".

    Raises UserError for no runs, runs without any results, two runs of one method and seed, or an unknown baseline.
    """
    return compare_groups(group_by_method([read_run(folder) for folder in runs]), out, baseline)


def compare_groups(groups: Sequence[Group], out: Path | None = None, baseline: str | None = None) -> Comparison:
    """The same of runs that are grouped already."""
    read = [run for group in groups for run in group.runs]
    present = {key for run in read for key in run.results}
    if not present:
        raise UserError("None of the runs has results. Run `wcord evaluate RUN` for each, then compare again.")
    metrics = tuple(key for key in KEY_METRICS if key in present) or tuple(sorted(present))
    names = [group.name for group in groups]
    if baseline is not None and baseline not in names:
        raise UserError(f"baseline: no method is called {baseline!r}; there are {', '.join(names)}.")
    notes = tuple(f"{run.folder}: {note}" for run in read for note in run.notes)
    chosen = groups[names.index(baseline)] if baseline is not None else groups[0]
    apart = ((group, measured_apart(group, chosen)) for group in groups)
    notes += tuple(
        f"{group.name} and {chosen.name} were not measured on the same ({'; '.join(what)}): no verdict."
        for group, what in apart
        if what
    )
    comparison = Comparison(tuple(groups), metrics, chosen, notes)
    if out is not None:
        write(comparison, out)
    return comparison


def measured_apart(group: Group, other: Group) -> list[str]:
    """What their results were measured on, where it is not the same, in words; what a run does not say is passed over.

    Of each group the first run, for its runs differ only by seed.
    """
    one, two = (_measured_on(own.runs[0]) for own in (group, other))
    return [f"{key}: {one[key]} and {two[key]}" for key in one if key in two and one[key] != two[key]]


def _measured_on(run: Run) -> dict[str, Any]:
    told = (("data", "shards"), ("data", "label"), ("evaluation", "split"), ("evaluation", "samples"))
    sections = {name: run.config.get(name) for name, _ in told}
    found = {f"{name}.{key}": own[key] for name, key in told if isinstance(own := sections[name], dict) and key in own}
    if "data.shards" in found:
        found["data.shards"] = Path(str(found["data.shards"])).name  # one data set may lie at several places
    return found | {key: run.results[key] for key in ("samples/test",) if key in run.results}


def write(comparison: Comparison, out: Path) -> None:
    """Write `table.md`, `table.csv` and `plot.png` into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "table.md", comparison.markdown().encode())
    write_atomic(out / "table.csv", comparison.csv().encode())
    write_atomic(out / "plot.png", plot(comparison))


def group_by_method(runs: Sequence[Run]) -> tuple[Group, ...]:
    """Runs of one method, in order of appearance; a run without a config belongs with its namesakes."""
    members: dict[str, list[Run]] = {}
    for run in runs:
        key = _method(run)
        for other in members.setdefault(key, []):
            if run.folder.resolve() == other.folder.resolve() or (run.seed == other.seed is not None):
                raise UserError(
                    f"{run.folder}: same method and seed as {other.folder}, so the two are not independent. "
                    "Give one of them."
                )
        members[key].append(run)
    if not members:
        raise UserError("Nothing to compare: give at least one run folder.")
    names = distinct([group[0].stem for group in members.values()])
    return tuple(Group(name, tuple(group)) for name, group in zip(names, members.values(), strict=True))


def _method(run: Run) -> str:
    """The same text for runs that differ only by seed."""
    if not run.config:
        return f"no config: {run.stem}"
    method = {key: value for key, value in run.config.items() if key not in ("run", "seed")}
    if isinstance(evaluation := method.get("evaluation"), dict):
        # Runs to show beside this one, often of its own seed; they change nothing in it.
        method["evaluation"] = {key: value for key, value in evaluation.items() if key != "baselines"}
    if isinstance(teacher := method.get("teacher"), dict) and teacher.get("cache"):
        # Views are drawn by the seed, so each seed has a cache of its own.
        method["teacher"] = teacher | {"cache": "cached"}
    return json.dumps(method, sort_keys=True, default=str)


def paired_difference(differences: Sequence[float], lower_is_better: bool = False) -> Difference:
    """Judge differences at the same seeds by their 95 % paired t interval (Student 1908)."""
    from scipy.stats import t

    n, mean = len(differences), statistics.fmean(differences)
    if n < 2:
        return Difference(mean, None, n, None, None, "no verdict")
    std = statistics.stdev(differences)
    half = float(t.ppf(0.975, n - 1)) * std / n**0.5
    verdict = "better" if (mean > 0) != lower_is_better else "worse"
    return Difference(mean, std, n, mean - half, mean + half, "within noise" if abs(mean) <= half else verdict)


def plot(comparison: Comparison) -> bytes:
    """A PNG: a bar with its standard deviation for top-1 and linear probe of each method, and the teacher's level."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    shown = ("student/top1", "student/mIoU", "student/probe")
    metrics = [m for m in comparison.metrics if m in shown][:2] or comparison.metrics[:1]
    scale = 100 if is_fraction(metrics[0]) else 1
    height = 0.8 / len(metrics)
    figure = Figure(figsize=(7, 1.4 + 0.38 * len(metrics) * len(comparison.groups)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    named: list[object] = []
    for i, (metric, colour) in enumerate(zip(metrics, ("#2f6f8f", "#8fb3c4"), strict=False)):
        for row, group in enumerate(comparison.groups):
            y = row + (i - (len(metrics) - 1) / 2) * height
            if cell := group.cell(metric):
                error = None if cell.std is None else cell.std * scale
                axes.barh(y, cell.mean * scale, height * 0.92, xerr=error, color=colour, capsize=2)
            if teacher := group.cell(metric.replace("student/", "teacher/")):
                ends = (y - height / 2, y + height / 2)
                axes.plot([teacher.mean * scale] * 2, ends, color="#b5703a", lw=2)
        named.append(Patch(color=colour, label=KEY_METRICS.get(metric, metric)))
    named.append(Line2D([], [], color="#b5703a", lw=2, label="teacher"))
    # Names are drawn as they are: a `$` in them is no formula.
    names = [group.name.replace("$", r"\$") for group in comparison.groups]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("per cent" if scale == 100 else metrics[0])
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(handles=named, loc="outside upper center", ncols=3, frameon=False)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _header(metric: str) -> str:
    return KEY_METRICS.get(metric, metric) + (" %" if is_fraction(metric) else "")


def _number(metric: str, value: float, signed: bool = False) -> str:
    scaled = 100 * value if is_fraction(metric) else value
    form = ".1f" if is_fraction(metric) else ",.0f" if float(value).is_integer() else ".4g"
    return format(scaled, ("+" if signed else "") + form)


def _cell(cell: Cell | None, metric: str) -> str:
    if cell is None:
        return "-"
    spread = "" if cell.std is None or metric.startswith(SIZES) else f" ± {_number(metric, cell.std)}"
    return f"{_number(metric, cell.mean)}{spread} ({cell.n})"


def _difference(difference: Difference | None, metric: str) -> str:
    if difference is None:
        return "-"
    spread = "" if difference.std is None else f" ± {_number(metric, difference.std)}"
    if difference.low is not None and difference.high is not None:
        spread += f" [{', '.join(_number(metric, end, signed=True) for end in (difference.low, difference.high))}]"
    return f"{_number(metric, difference.mean, signed=True)}{spread} ({difference.n}): {difference.verdict}"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, their header first, as Markdown; all but the first column are numbers."""
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    rule = "|" + " --- |" + " ---: |" * (len(rows[0]) - 1)
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"
