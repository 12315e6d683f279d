"""Compares runs: mean and standard deviation over seeds, and whether differences are significant.

A little over 350 lines because of the docstrings of its public names.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common.console import printable
from pipeline.common.errors import UserError
from pipeline.common.files import write_atomic
from pipeline.config.settings import made_in_python
from pipeline.runs.reader import (
    NAMES,
    RETRIEVAL_METRICS,
    Run,
    distinct,
    is_fraction,
    key_metrics,
    lower_is_better,
    random_order,
    read_run,
)

if TYPE_CHECKING:
    from rich.console import Group as Renderable

RULE = (
    "Cells show mean ± sample standard deviation (number of seeds); for retrieval with one seed, [95 % confidence "
    "interval over the queries]. Differences are paired, i.e. method minus baseline at the same seed: mean ± "
    "sample standard deviation [95 % paired t interval, mean ± t(0.975, n-1) · std / √n] (number of common seeds). A "
    "difference is within noise, i.e. not significant, if the interval contains 0. There is no verdict with fewer than "
    "two common seeds, or if the results were measured on different data. There is no correction for multiple "
    "comparisons: about one in twenty comparisons of equal methods will look significant by chance."
)
SIZES = ("parameters/", "samples/")


@dataclass(frozen=True)
class SeedStatistics:
    """A metric over the seeds of a group: mean, sample standard deviation (None for one seed) and number of seeds."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """Group minus baseline, paired by seed; `low` and `high` bound the 95 % paired t interval (None with one seed)."""

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

    def cell(self, metric: str) -> SeedStatistics | None:
        """Mean and standard deviation of a result over the seeds; None if no run has it."""
        values = [run.results[metric] for run in self.runs if metric in run.results]
        if not values:
            return None
        return SeedStatistics(
            statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values)
        )

    def by_seed(self, metric: str) -> dict[int, float]:
        """Seed -> result of its run."""
        return {r.seed: r.results[metric] for r in self.runs if metric in r.results and r.seed is not None}


@dataclass(frozen=True)
class Comparison:
    """Groups as rows, metrics as columns.

    Attributes:
        groups: The methods.
        metrics: Keys of `results.json`.
        baseline: The group that the others are compared with.
        notes: One sentence on everything that is missing or prevents a comparison.
    """

    groups: tuple[Group, ...]
    metrics: tuple[str, ...]
    baseline: Group
    notes: tuple[str, ...]

    def difference(self, group: Group, metric: str) -> Difference | None:
        """Group minus baseline; None for the baseline itself, for sizes, and without common seeds."""
        if group is self.baseline or metric.startswith(SIZES):
            return None
        ours, theirs = group.by_seed(metric), self.baseline.by_seed(metric)
        differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
        if not differences:
            return None
        found = paired_difference(differences, lower_is_better(metric))
        return replace(found, verdict="no verdict") if measured_apart(group, self.baseline) else found

    def rows(self) -> list[list[str]]:
        """The table of results as text, with the header first."""
        header = ["method", *(_header(metric) for metric in self.metrics)]
        rows = [[g.name, *(_cell(g.cell(m), m) + _sampling(g, m) for m in self.metrics)] for g in self.groups]
        return [header, *rows, *self._references()]

    def _references(self) -> list[list[str]]:
        """Rows for an untrained student and for chance, from the runs of the baseline; only for retrieval."""
        if not any(random_order(metric) in run.results for metric in self.metrics for run in self.baseline.runs):
            return []
        kinds = {"untrained student": lambda metric: f"random/{metric}", "chance": random_order}
        return [
            [
                name,
                *(
                    _cell(self.baseline.cell(key(metric)), metric) if metric in RETRIEVAL_METRICS else "-"
                    for metric in self.metrics
                ),
            ]
            for name, key in kinds.items()
        ]

    def difference_rows(self) -> list[list[str]]:
        """The table of paired differences as text, with the header first; only the header if there are none."""
        metrics = [m for m in self.metrics if any(self.difference(g, m) for g in self.groups)]
        others = [g for g in self.groups if g is not self.baseline] if metrics else []
        header = [f"minus {self.baseline.name}", *(_header(metric) for metric in metrics)]
        return [header, *([g.name, *(_difference(self.difference(g, m), m) for m in metrics)] for g in others)]

    def terminal(self) -> Renderable:
        """Both tables, the legend and the notes, for `rich.print`."""
        from rich.box import SIMPLE_HEAD
        from rich.console import Group as Lines
        from rich.table import Table
        from rich.text import Text

        tables = []
        for header, *rows in (self.rows(), self.difference_rows()):
            table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
            for i, name in enumerate(map(printable, header)):
                # Do not break words, down to a width of 80 columns.
                width = max(len(word) for word in name.split()) if i else None
                table.add_column(Text(name), justify="right" if i else "left", min_width=width, no_wrap=i == 0)
            for row in rows:
                table.add_row(*(Text(printable(cell)) for cell in row))
            if rows:
                tables.append(table)
        return Lines(*tables, Text(RULE, style="dim"), *(Text(f"note: {note}") for note in self.notes))

    def markdown(self) -> str:
        """Both tables, the legend and the notes as Markdown."""
        blocks = [markdown_table(rows) for rows in (self.rows(), self.difference_rows()) if len(rows) > 1]
        return "\n".join([*blocks, RULE + "\n", *(f"- {note}" for note in self.notes)]).rstrip() + "\n"

    def csv(self) -> str:
        """One line per group, with all digits and in the units of `results.json`."""
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
    """Group runs by method and compare each method with a baseline, paired by seed.

    Runs whose configs differ only in `seed`, `run`, `evaluation.baselines` and the name of a cache form one method,
    named after the first folder, without the seed.

    A difference is "within noise" if its 95 % paired t interval over the common seeds contains 0, otherwise "better"
    or "worse". With fewer than two common seeds, or if the two were measured on different data, it is "no verdict".

    Args:
        runs: Run folders with results.
        out: Folder for `table.md`, `table.csv` and `plot.png`; None writes nothing.
        baseline: Name of a method; None means the first one.

    Raises:
        UserError: There are no runs or no results, two runs have the same method and seed, or the baseline is unknown.
    """
    return compare_groups(group_by_method([read_run(folder) for folder in runs]), out, baseline)


def compare_groups(groups: Sequence[Group], out: Path | None = None, baseline: str | None = None) -> Comparison:
    """Compare runs that are already grouped; see `compare`.

    Args:
        groups: The methods.
        out: Folder for the files; None writes nothing.
        baseline: Name of a group; None means the first one.

    Raises:
        UserError: There are no results, or the baseline is unknown.
    """
    read = [run for group in groups for run in group.runs]
    present = {key for run in read for key in run.results}
    if not present:
        cure = "Run `wcord evaluate RUN` for each, then compare again."
        if any(made_in_python(run.config) for run in read):
            cure = "Pass `validation` and `metrics` to wcord.distill; for other runs, use `wcord evaluate RUN`."
        raise UserError(f"None of the runs has results. {cure}")
    metrics = key_metrics(present) or tuple(sorted(present))
    names = [group.name for group in groups]
    if baseline is not None and baseline not in names:
        raise UserError(f"baseline: there is no method {baseline!r}; choose one of {', '.join(names)}.")
    notes = tuple(printable(f"{run.folder}: {note}") for run in read for note in run.notes)
    chosen = groups[names.index(baseline)] if baseline is not None else groups[0]
    apart = ((group, measured_apart(group, chosen)) for group in groups)
    notes += tuple(
        f"{group.name} and {chosen.name} were measured on different data ({'; '.join(what)}): no verdict."
        for group, what in apart
        if what
    )
    comparison = Comparison(tuple(groups), metrics, chosen, notes)
    if out is not None:
        write(comparison, out)
    return comparison


def measured_apart(group: Group, other: Group) -> list[str]:
    """The differences between the data that two groups were measured on, as text; unknown entries are skipped.

    Only the first run of each group is read, since the others differ only by seed.
    """
    one, two = (_measured_on(own.runs[0]) for own in (group, other))
    return [f"{key}: {one[key]} and {two[key]}" for key in one if key in two and one[key] != two[key]]


def _measured_on(run: Run) -> dict[str, Any]:
    known = (("data", "shards"), ("data", "label"), ("evaluation", "split"), ("evaluation", "samples"))
    sections = {name: run.config.get(name) for name, _ in known}
    found = {f"{name}.{key}": own[key] for name, key in known if isinstance(own := sections[name], dict) and key in own}
    if "data.shards" in found:
        found["data.shards"] = Path(str(found["data.shards"])).name  # copies of one dataset may be in different folders
    return found | {key: run.results[key] for key in ("samples/test",) if key in run.results}


def write(comparison: Comparison, out: Path) -> None:
    """Write `table.md`, `table.csv` and `plot.png` into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "table.md", comparison.markdown().encode())
    write_atomic(out / "table.csv", comparison.csv().encode())
    write_atomic(out / "plot.png", plot(comparison))


def group_by_method(runs: Sequence[Run]) -> tuple[Group, ...]:
    """Group runs by method, in order of appearance. Runs without a config are grouped by name.

    Raises:
        UserError: There are no runs, or two have the same method and seed.
    """
    members: dict[str, list[Run]] = {}
    for run in runs:
        key = _method(run)
        for other in members.setdefault(key, []):
            if run.folder.resolve() == other.folder.resolve() or (run.seed == other.seed is not None):
                raise UserError(
                    f"{run.folder}: has the same method and seed as {other.folder}, so the two runs are not "
                    "independent. Remove one of them."
                )
        members[key].append(run)
    if not members:
        raise UserError("Nothing to compare: pass at least one run folder.")
    names = distinct([printable(group[0].stem) for group in members.values()])
    return tuple(Group(name, tuple(group)) for name, group in zip(names, members.values(), strict=True))


def _method(run: Run) -> str:
    """A text that is the same for runs that differ only by seed."""
    if not run.config:
        return f"no config: {run.stem}"
    method = {key: value for key, value in run.config.items() if key not in ("run", "seed")}
    if isinstance(evaluation := method.get("evaluation"), dict):
        # Baselines only appear in the report (often with the same seed) and do not affect the run.
        method["evaluation"] = {key: value for key, value in evaluation.items() if key != "baselines"}
    if isinstance(teacher := method.get("teacher"), dict) and teacher.get("cache"):
        # Views depend on the seed, so each seed has its own cache.
        method["teacher"] = teacher | {"cache": "cached"}
    return json.dumps(method, sort_keys=True, default=str)


def paired_difference(differences: Sequence[float], lower_is_better: bool = False) -> Difference:
    """Derive the verdict on paired differences from their 95 % paired t interval (Student 1908).

    Args:
        differences: One per common seed.
        lower_is_better: Whether a negative difference is better.
    """
    from scipy.stats import t

    n, mean = len(differences), statistics.fmean(differences)
    if n < 2:
        return Difference(mean, None, n, None, None, "no verdict")
    std = statistics.stdev(differences)
    half = float(t.ppf(0.975, n - 1)) * std / n**0.5
    verdict = "better" if (mean > 0) != lower_is_better else "worse"
    return Difference(mean, std, n, mean - half, mean + half, "within noise" if abs(mean) <= half else verdict)


def plot(comparison: Comparison) -> bytes:
    """Plot top-1 and linear probe of each method with standard deviations, and those of the teacher, as PNG."""
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
        named.append(Patch(color=colour, label=NAMES.get(metric, metric)))
    named.append(Line2D([], [], color="#b5703a", lw=2, label="teacher"))
    # Matplotlib would read text between `$` as a formula.
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
    return NAMES.get(metric, metric) + (" %" if is_fraction(metric) else "")


def _number(metric: str, value: float, signed: bool = False) -> str:
    scaled = 100 * value if is_fraction(metric) else value
    form = ".1f" if is_fraction(metric) else ",.0f" if float(value).is_integer() else ".4g"
    return format(scaled, ("+" if signed else "") + form)


def _cell(cell: SeedStatistics | None, metric: str) -> str:
    if cell is None:
        return "-"
    spread = "" if cell.std is None or metric.startswith(SIZES) else f" ± {_number(metric, cell.std)}"
    return f"{_number(metric, cell.mean)}{spread} ({cell.n})"


def _sampling(group: Group, metric: str) -> str:
    """The 95 % confidence interval over the test samples for the only run of a method, if it is known."""
    results = group.runs[0].results
    if len(group.runs) > 1 or f"{metric}_low" not in results or f"{metric}_high" not in results:
        return ""
    return f" [{', '.join(_number(metric, results[f'{metric}_{end}']) for end in ('low', 'high'))}]"


def _difference(difference: Difference | None, metric: str) -> str:
    if difference is None:
        return "-"
    spread = "" if difference.std is None else f" ± {_number(metric, difference.std)}"
    if difference.low is not None and difference.high is not None:
        spread += f" [{', '.join(_number(metric, end, signed=True) for end in (difference.low, difference.high))}]"
    return f"{_number(metric, difference.mean, signed=True)}{spread} ({difference.n}): {difference.verdict}"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Format rows of text, with the header first, as Markdown; all columns but the first are right-aligned."""
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    rule = "|" + " --- |" + " ---: |" * (len(rows[0]) - 1)
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"
