"""The run folder while it is written: who may write into it, and what it says of its making."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.checkpoint import list_checkpoints
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.network import DESCRIPTION
from pipeline.shards import load_dataset, write_atomic

RESULTS = ("student", "results.json", "evaluation", "report.html", "nonfinite_rank*.json")
"""What a training's end leaves, and what is made of it: no longer true once it goes on."""

WRITTEN = (
    *("checkpoints", "metrics.jsonl", "skipped.jsonl", "best", "tensorboard", "trackers.json", "profile.json"),
    *RESULTS,
)
"""What a run writes, its config aside; patterns of names."""


def claim(run: Path, resume: bool, overwrite: bool) -> None:
    """Refuse to write over finished work. Nothing is deleted yet: the config may still turn out to be wrong, and all
    ranks look at the same."""
    made = [path.name for name in WRITTEN for path in sorted(run.glob(name))]
    if made and not (resume or overwrite):
        raise UserError(
            f"{run}: already holds a run ({', '.join(made)}). Go on with it by --resume, replace it by --overwrite, or "
            "choose another `run`."
        )
    if not overwrite and (run / "student" / DESCRIPTION).exists() and not list_checkpoints(run / "checkpoints"):
        raise UserError(
            f"{run}: there is no checkpoint to go on from, but a finished student is there. Replace it by --overwrite, "
            "or choose another `run`."
        )


def clear(run: Path, names: Sequence[str]) -> None:
    """Delete what an earlier training or evaluation wrote into the folder, and nothing else."""
    for path in [path for name in names for path in run.glob(name)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_config(config: Config, run: Path) -> None:
    """Write the resolved config, headed by the versions it ran with, in a form that `load` reads back."""
    versions = {name: _version(name) for name in ("wcord", "torch", "accelerate", "transformers")}
    dataset = load_dataset(config.data.shards)
    head = [
        " ".join(f"{name} {number}" for name, number in versions.items()),
        f"python {platform.python_version()}, git revision {_revision()}",
        f"data {dataset.name}: {dataset.samples('train')} training samples",
    ]
    run.mkdir(parents=True, exist_ok=True)
    write_atomic(run / "config.yaml", ("".join(f"# {line}\n" for line in head) + config.to_yaml()).encode())


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _revision() -> str:
    """The checkout's revision; `none` for an installed package, also if it lies inside somebody's repository."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return "none"
    try:
        git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True)
    except OSError:
        return "none"
    return git.stdout.strip() if git.returncode == 0 else "none"
