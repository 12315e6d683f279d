"""Reads a run folder: config, log and results, notes on what is missing, and display names of metrics."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.common.errors import UserError
from pipeline.common.run_format import check_format
from pipeline.config.renamed import with_current_names
from pipeline.config.settings import made_in_python

KEY_METRICS = {
    "student/top1": "top-1",
    "student/mIoU": "mIoU",
    "student/pixel_accuracy": "pixel accuracy",
    "student/mean_accuracy": "mean accuracy",
    "student/balanced": "balanced accuracy",
    "student/probe": "linear probe",
    "student/knn": "k-NN",
    "retrieval/student_to_teacher/R@1": "R@1 student to teacher",
    "retrieval/teacher_to_student/R@1": "R@1 teacher to student",
    "parameters/student": "params",
}
"""Results that tables and charts show first, and their display names."""

RETRIEVAL_METRICS = {
    f"retrieval/{way}/{name}": f"{shown} {way.replace('_', ' ')}"
    for way in ("student_to_teacher", "teacher_to_student")
    for name, shown in {"R@1": "R@1", "R@5": "R@5", "R@10": "R@10", "median_rank": "median rank"}.items()
}
"""Results that replace accuracies for runs without labels, and their display names."""

NAMES = KEY_METRICS | RETRIEVAL_METRICS
"""Display names of results."""


def key_metrics(results: Collection[str]) -> tuple[str, ...]:
    """The results to show first, out of the given names; if there are no accuracies, all retrieval results."""
    accuracy = any(name in results for name in KEY_METRICS if name.startswith("student/"))
    chosen = list(KEY_METRICS) if accuracy else [*RETRIEVAL_METRICS, "parameters/student"]
    return tuple(name for name in chosen if name in results)


def random_order(metric: str) -> str:
    """Name of the result that contains the chance level of a retrieval metric."""
    return f"chance/retrieval/{metric.rsplit('/', 1)[-1]}"


FRACTIONS = {"top1", "top5", "balanced", "probe", "knn", "mIoU", "pixel_accuracy", "mean_accuracy"}

LEFT = ("checkpoints", "tensorboard", "student", "evaluation", "skipped.jsonl", "report.html")
"""Further names that identify a folder as a run, even an unfinished one."""

SEED_SUFFIX = re.compile(r"(?:_s|[_-]seed|_)(\d+)$")


@dataclass(frozen=True)
class Run:
    """The contents of a run folder.

    Attributes:
        folder: The folder.
        config: `config.yaml`; `{}` if it is missing.
        log: Step -> values of `metrics.jsonl`, in order of steps.
        results: `results.json`, finite numbers only.
        notes: One sentence on everything that is missing or was skipped.
    """

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    log: dict[int, dict[str, float]] = field(default_factory=dict)
    results: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.resolve().name

    @property
    def stem(self) -> str:
        """The name of the folder without a trailing `_s3`, `_seed3`, `-seed3` or `_3`."""
        return SEED_SUFFIX.sub("", self.name) or self.name

    @property
    def seed(self) -> int | None:
        """The seed in the config, else the number at the end of the folder name."""
        if isinstance(seed := self.config.get("seed"), int):
            return seed
        found = SEED_SUFFIX.search(self.name)
        return int(found[1]) if found else None

    @property
    def split(self) -> str:
        """The split that was evaluated."""
        section = self.config.get("evaluation")
        return str(section.get("split", "test")) if isinstance(section, dict) else "test"

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """The steps at which a value was logged, and the values, which may be NaN or infinite."""
        steps = [step for step, row in self.log.items() if key in row]
        return steps, [self.log[step][key] for step in steps]

    def last(self, key: str) -> float | None:
        """The last logged value; None if it was never logged."""
        values = self.series(key)[1]
        return values[-1] if values else None

    def command(self, name: str, file: str = "") -> str:
        """The command line `wcord NAME FOLDER`, or with a file in the folder, quoted for a shell."""
        return f"wcord {name} {shlex.quote(str(self.folder / file))}"


def read_run(folder: str | Path) -> Run:
    """Read a run folder. Missing or truncated files become notes.

    Args:
        folder: The run folder.

    Raises:
        UserError: The folder is not a run folder or has another format, or a file in it is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder. Pass the run folder that `wcord train` created.")
    names = ("config.yaml", "metrics.jsonl", "results.json")
    if any(folder.iterdir()) and not any((folder / name).exists() for name in (*names, *LEFT)):
        raise UserError(f"{folder}: not a run folder; it contains none of {', '.join(names)}.")
    notes: list[str] = []
    run, config = Run(folder), _read_config(folder / names[0])
    measure = f"when training has finished, run `{run.command('evaluate')}`"
    if made_in_python(config):
        measure = "pass `validation` and `metrics` to wcord.distill"
    hints = {
        "config.yaml": "the settings of the run are unknown; `wcord train` writes it",
        "metrics.jsonl": "there are no curves; `wcord train` writes it",
        "results.json": f"there are no results; {measure}",
    }
    for name, hint in hints.items():
        if not (folder / name).is_file():
            notes.append(f"{name} is missing: {hint}.")
    log = read_log(folder / names[1], notes)
    results = read_results(folder / names[2], notes)
    return Run(folder, config, log, results, tuple(notes))


def labels(runs: Sequence[Run]) -> list[str]:
    """Distinct names for runs: the name of the folder, with its parent if two are equal."""
    names = [run.name for run in runs]
    parts = [run.folder.resolve().parts[-2:] for run in runs]
    return distinct(["/".join(p) if names.count(n) > 1 else n for n, p in zip(names, parts, strict=True)])


def distinct(names: Sequence[str]) -> list[str]:
    """Make names distinct by appending ` #2`, ` #3` … to repeated ones."""
    counts = [names[:i].count(name) for i, name in enumerate(names)]
    return [f"{name} #{n + 1}" if n else name for name, n in zip(names, counts, strict=True)]


def is_fraction(key: str) -> bool:
    """Whether a result is a fraction in [0, 1] that is displayed in per cent."""
    last = key.rsplit("/", 1)[-1]
    return last in FRACTIONS or last.startswith(("R@", "recall_at_")) or "/IoU/" in key


def lower_is_better(key: str) -> bool:
    """Whether a lower value of a result is better, as for ranks and parameters."""
    return key.rsplit("/", 1)[-1] in {"median_rank", "loss"} or key.startswith("parameters/")


def format_metric(key: str, value: float) -> str:
    """Format a result for display: `71.0 %` (with a no-break space), `213,450` or `0.1234`."""
    if is_fraction(key):
        return f"{100 * value:.1f}\N{NO-BREAK SPACE}%"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())}). Restore the file.") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a mapping of settings. Restore the file that `wcord train` wrote.")
    check_format(config.pop("format", None), path)
    return with_current_names(config)


def read_log(path: Path, notes: list[str]) -> dict[int, dict[str, float]]:
    """Read `metrics.jsonl` as step -> values.

    Lines with the same step are merged and later values win, since a resumed run repeats its last steps.

    Args:
        path: The file; it may be missing.
        notes: Problems with the file are appended to it.
    """
    if not path.is_file():
        return {}
    log: dict[int, dict[str, float]] = {}
    rows = [read_line(line) for line in path.read_bytes().splitlines()]
    for row in rows:
        if row is not None:
            log.setdefault(int(row["step"]), {}).update(row)
    bad = [number for number, row in enumerate(rows, 1) if row is None]
    if not log:
        notes.append("metrics.jsonl contains no valid line, so there are no curves.")
    if bad and bad[-1] == len(rows):
        notes.append(f"metrics.jsonl: the last line ({bad.pop()}) is truncated and was skipped.")
    if bad:
        notes.append(
            f"metrics.jsonl: skipped {len(bad)} line(s) that are not JSON objects with a step; the first is {bad[0]}."
        )
    return dict(sorted(log.items()))


def read_line(line: bytes) -> dict[str, float] | None:
    """The numbers in a line of the log; None if it is not a JSON object with a step."""
    try:
        row = {key: float(value) for key, value in json.loads(line).items() if _is_number(value)}
        int(row["step"])
    except (ValueError, AttributeError, KeyError, OverflowError, RecursionError):
        return None
    return row


def read_results(path: Path, notes: list[str]) -> dict[str, float]:
    """Read `results.json` as name -> finite value; `{}` if it is missing.

    Args:
        path: The file.
        notes: Values that were skipped are appended to it, as a sentence.

    Raises:
        UserError: The file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        results = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}). Run `wcord evaluate` again.") from None
    if not isinstance(results, dict):
        raise UserError(f"{path}: not a JSON object of names and numbers. Run `wcord evaluate` again.")
    valid = {key: value for key, value in results.items() if _is_number(value) and _is_possible(key, value)}
    if left_out := sorted(results.keys() - valid.keys()):
        notes.append(
            f"results.json: skipped values that are not finite numbers or out of range: {', '.join(left_out)}."
        )
    return valid


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_possible(key: str, value: float) -> bool:
    """Whether a result can have this value: finite, at most 1 for a fraction, and not negative for what is counted."""
    if is_fraction(key):
        return 0 <= value <= 1
    counted = key.startswith(("samples/", "parameters/", "skipped/"))
    return abs(value) <= sys.float_info.max and (value >= 0 or not counted)
