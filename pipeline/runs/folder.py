"""The run folder during training: checks before writing to it, and records the versions."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.files import write_atomic
from pipeline.config.settings import Config
from pipeline.models.description import DESCRIPTION
from pipeline.runs.checkpoint import list_checkpoints
from pipeline.runs.pairs_file import PAIRS, SHEET

RESULTS = (
    *("student", "results.json", "results_*.json", "evaluation", "report.html", "nonfinite_rank*.json"),
    *(PAIRS, SHEET),
)
"""Patterns of files written at the end of training or later. They are outdated as soon as the run resumes."""

WRITTEN = (
    *("checkpoints", "metrics.jsonl", "skipped.jsonl", "best", "best_*", "tensorboard", "trackers.json"),
    *("profile.json", "learning_rates.json", "learning_rate_finder.json"),
    *RESULTS,
)
"""Patterns of all files that a run writes, except its config."""


def claim(run: Path, resume: bool, overwrite: bool) -> None:
    """Check that training may write to a run folder. Nothing is deleted yet, since the config may still be invalid.

    Args:
        run: The run folder.
        resume: Whether `--resume` is set.
        overwrite: Whether `--overwrite` is set.

    Raises:
        UserError: The folder contains a run and neither option is set, or there is nothing to resume from.
    """
    made = [path.name for name in WRITTEN for path in sorted(run.glob(name))]
    if made and not (resume or overwrite):
        raise UserError(
            f"{run}: already contains a run ({', '.join(made)}). Resume it with --resume, replace it with --overwrite, "
            "or choose another `run`."
        )
    if not overwrite and (run / "student" / DESCRIPTION).exists() and not list_checkpoints(run / "checkpoints"):
        raise UserError(
            f"{run}: contains a finished student, but no checkpoint to resume from. Replace it with --overwrite, or "
            "choose another `run`."
        )


def clear(run: Path, names: Sequence[str]) -> None:
    """Delete only files (selected by pattern) that an earlier training or evaluation wrote to the folder."""
    for path in [path for name in names for path in run.glob(name)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_config(config: Config, run: Path, data: str) -> None:
    """Write the resolved config, with versions and `data` as comments in the first lines; `load` can read it."""
    versions = {name: _version(name) for name in ("wcord", "torch", "accelerate", "transformers")}
    head = [
        " ".join(f"{name} {number}" for name, number in versions.items()),
        f"python {platform.python_version()}, git revision {_revision()}",
        data,
    ]
    run.mkdir(parents=True, exist_ok=True)
    write_atomic(run / "config.yaml", ("".join(f"# {line}\n" for line in head) + config.to_yaml()).encode())


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _revision() -> str:
    """The git revision of the checkout; `none` for an installed package, even inside another repository."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return "none"
    try:
        git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True)
    except OSError:
        return "none"
    return git.stdout.strip() if git.returncode == 0 else "none"
