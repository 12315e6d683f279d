"""The run folder while it is written: who may write into it, and what it says of its making."""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

from accelerate import Accelerator

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.shards import load_dataset, write_atomic


def claim(run: Path, resume: bool, overwrite: bool, accelerator: Accelerator) -> None:
    """Make sure that no finished work is overwritten, then write nothing but the folder itself."""
    made = [name for name in ("checkpoints", "student", "metrics.jsonl") if (run / name).exists()]
    if made and not (resume or overwrite):
        raise UserError(
            f"{run}: already holds a run ({', '.join(made)}). Go on with it by --resume, replace it by --overwrite, or "
            "choose another `run`."
        )
    accelerator.wait_for_everyone()  # nobody may delete or create before all have looked
    if overwrite and not resume and accelerator.is_main_process and made:
        shutil.rmtree(run)
    accelerator.wait_for_everyone()


def write_config(config: Config, run: Path) -> None:
    """Write the resolved config, headed by the versions it ran with, in a form that `load` reads back."""
    folder = Path(__file__).parent
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=folder, capture_output=True, text=True)
    revision = git.stdout.strip() if git.returncode == 0 else "none"
    versions = {name: version(name) for name in ("wcord", "torch", "accelerate", "transformers", "webdataset")}
    dataset = load_dataset(config.data.shards)
    head = [
        " ".join(f"{name} {number}" for name, number in versions.items()),
        f"python {platform.python_version()}, git revision {revision}",
        f"data {dataset.name}: {dataset.samples('train')} training samples",
    ]
    run.mkdir(parents=True, exist_ok=True)
    write_atomic(run / "config.yaml", ("".join(f"# {line}\n" for line in head) + config.to_yaml()).encode())
