"""A run folder as it is read afterwards: config, log and results, what is missing of them, and their names in words."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import UserError
from pipeline.run_format import check_format

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
"""The results that tables and charts show first, and their names in words."""

FRACTIONS = {"top1", "top5", "balanced", "probe", "knn", "mIoU", "pixel_accuracy", "mean_accuracy"}

LEFT = ("checkpoints", "tensorboard", "student", "evaluation", "skipped.jsonl", "report.html")
"""What else tells that a folder is, or was to be, a run's."""

SEED_SUFFIX = re.compile(r"(?:_s|[_-]seed|_)(\d+)$")


@dataclass(frozen=True)
class Run:
    """What a run folder holds.

    config: `config.yaml`, `{}` where there is none. log: step -> values of `metrics.jsonl`, in order of steps.
    results: `results.json`, finite numbers only. notes: what is missing or was left out, a sentence each.
    """

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    log: dict[int, dict[str, float]] = field(default_factory=dict)
    results: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def stem(self) -> str:
        """The folder's name without a trailing `_s3`, `_seed3`, `-seed3` or `_3`."""
        return SEED_SUFFIX.sub("", self.name) or self.name

    @property
    def seed(self) -> int | None:
        """The config's seed, or else the number that the folder's name ends with."""
        if isinstance(seed := self.config.get("seed"), int):
            return seed
        found = SEED_SUFFIX.search(self.name)
        return int(found[1]) if found else None

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """The logged steps of one value, and the value at each (it may be NaN or infinite)."""
        steps = [step for step, row in self.log.items() if key in row]
        return steps, [self.log[step][key] for step in steps]

    def last(self, key: str) -> float | None:
        """The last logged value; None if it was never logged."""
        values = self.series(key)[1]
        return values[-1] if values else None

    def command(self, name: str, file: str = "") -> str:
        """The command line `wcord NAME FOLDER`, or of a file in the folder, quoted for a shell."""
        return f"wcord {name} {shlex.quote(str(self.folder / file))}"


def read_run(folder: str | Path) -> Run:
    """Read a run folder; what is missing or cut short becomes a note.

    Raises UserError if the folder is not one or of another format, or if a file in it is not what a run writes.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder. Give the folder that `wcord train` wrote.")
    names = ("config.yaml", "metrics.jsonl", "results.json")
    if any(folder.iterdir()) and not any((folder / name).exists() for name in (*names, *LEFT)):
        raise UserError(f"{folder}: not a run folder: it has none of {', '.join(names)}.")
    notes: list[str] = []
    run = Run(folder)
    hints = {
        "config.yaml": "what was trained is not known; `wcord train` writes it",
        "metrics.jsonl": "there are no curves; `wcord train` writes it",
        "results.json": f"there are no results; once it is trained, run `{run.command('evaluate')}`",
    }
    for name, hint in hints.items():
        if not (folder / name).is_file():
            notes.append(f"{name} is missing: {hint}.")
    config = _read_config(folder / names[0])
    log = read_log(folder / names[1], notes)
    results = _read_results(folder / names[2], notes)
    return Run(folder, config, log, results, tuple(notes))


def labels(runs: Sequence[Run]) -> list[str]:
    """A different name for each run: its folder's, with the parent folder's where two are alike."""
    names = [run.name for run in runs]
    parts = [run.folder.resolve().parts[-2:] for run in runs]
    return distinct(["/".join(p) if names.count(n) > 1 else n for n, p in zip(names, parts, strict=True)])


def distinct(names: Sequence[str]) -> list[str]:
    """The same names, the second and later of equal ones with ` #2`, ` #3` …"""
    counts = [names[:i].count(name) for i, name in enumerate(names)]
    return [f"{name} #{n + 1}" if n else name for name, n in zip(names, counts, strict=True)]


def is_fraction(key: str) -> bool:
    """Whether a result is a share in [0, 1], shown in per cent."""
    last = key.rsplit("/", 1)[-1]
    return last in FRACTIONS or last.startswith("R@") or "/IoU/" in key


def lower_is_better(key: str) -> bool:
    """Whether less of a result is better, as of ranks and parameters."""
    return key.rsplit("/", 1)[-1] in {"median_rank", "loss"} or key.startswith("parameters/")


def in_words(key: str, value: float) -> str:
    """A result for people: `71.0 %` (with a no-break space), `213,450` or `0.1234`."""
    if is_fraction(key):
        return f"{100 * value:.1f}\N{NO-BREAK SPACE}%"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())}). Restore the file.") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a mapping of settings. Restore the file that `wcord train` wrote.")
    check_format(config.pop("format", None), path)
    return config


def read_log(path: Path, notes: list[str]) -> dict[int, dict[str, float]]:
    """Step -> values; what is wrong with the file becomes a note.

    Lines of one step are joined, the later value wins: a resumed run writes its last steps again.
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
        notes.append("metrics.jsonl holds no log step: there are no curves.")
    if bad and bad[-1] == len(rows):
        notes.append(f"metrics.jsonl: the last line ({bad.pop()}) is cut short and was left out.")
    if bad:
        notes.append(
            f"metrics.jsonl: {len(bad)} line(s), the first is {bad[0]}, are not JSON objects with a step: left out."
        )
    return dict(sorted(log.items()))


def read_line(line: bytes) -> dict[str, float] | None:
    """The numbers of one log line; None if it is not a JSON object with a step."""
    try:
        row = {key: float(value) for key, value in json.loads(line).items() if _is_number(value)}
        int(row["step"])
    except (ValueError, AttributeError, KeyError, OverflowError):
        return None
    return row


def _read_results(path: Path, notes: list[str]) -> dict[str, float]:
    if not path.is_file():
        return {}
    try:
        results = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}). Run `wcord evaluate` again.") from None
    if not isinstance(results, dict):
        raise UserError(f"{path}: not an object of name and number. Run `wcord evaluate` again.")
    finite = {key: value for key, value in results.items() if _is_number(value) and math.isfinite(value)}
    if left_out := sorted(results.keys() - finite.keys()):
        notes.append(f"results.json: not finite numbers, left out: {', '.join(left_out)}.")
    return finite


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
