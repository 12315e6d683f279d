"""Checkpoints: whole or not there at all, newest first."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import UserError
from pipeline.network import Joint, Network, save_network
from pipeline.run_format import FORMAT, check_format
from pipeline.shards import sha256, write_atomic

BEST = "best"
SHARDS = "shards"
"""In an identity: a hash of the data that the run's steps count through; earlier versions left it out."""


@dataclass(frozen=True)
class Checkpoint:
    """model: what training changes. optimizer: its state_dict. step: how many steps were taken. ranks: by how many
    processes, each with so many `workers`, None where an earlier version did not note it."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    identity: dict[str, Any]
    ranks: int = 1
    workers: int | None = None


class DamagedError(UserError):
    """A checkpoint that is not what was written."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write `folder/step_NNNNNNNN` and drop all but the newest `keep`.

    It is written under another name, flushed to the disk and only then renamed. Raises UserError if it cannot be
    written (a full disk); what was there before stays.
    """
    target = folder / f"step_{checkpoint.step:08d}"
    part = folder / f".part_{checkpoint.step:08d}"
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        save_file({k: v.contiguous() for k, v in checkpoint.model.items()}, part / "model.safetensors")
        torch.save(checkpoint.optimizer, part / "optimizer.pt")
        about = {
            "format": FORMAT,
            "step": checkpoint.step,
            "ranks": checkpoint.ranks,
            "workers": checkpoint.workers,
            "sha256": {path.name: sha256(path) for path in sorted(part.iterdir())},
            "identity": checkpoint.identity,
        }
        (part / "checkpoint.json").write_text(json.dumps(sealed(about), indent=1))
        for path in part.iterdir():
            _flush(path)
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
        _flush(folder)
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(part, ignore_errors=True)
        kept = list_checkpoints(folder)
        last = f"the last whole one is {kept[-1]}" if kept else "there is no earlier one"
        raise UserError(
            f"{target}: the checkpoint could not be written ({error}); {last}. "
            "Free space (or lower train.keep) and go on with `--resume`."
        ) from None
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(p for p in folder.glob("step_*") if re.fullmatch(r"step_\d{8,}", p.name))


def load_checkpoint(path: Path, identity: Mapping[str, Any]) -> Checkpoint:
    """Read a checkpoint on the CPU; nothing in it is executed.

    identity: what the run is made of (student, teacher, losses). Raises UserError if the checkpoint was made by a run
    of another identity, naming what differs, or on other data, or if it is damaged.
    """
    try:
        about = json.loads((path / "checkpoint.json").read_bytes())
        check_format(about.get("format"), path)
        if "digest" in about and about != sealed(about):  # earlier versions left it out
            raise ValueError("checkpoint.json is not what was written: its digest differs")
        if identity.get(SHARDS) != about["identity"].get(SHARDS, identity.get(SHARDS)):
            raise UserError(
                f"{path}: the training shards are not those it was made with: data.shards or data.join names another "
                "data set, or one that was packed anew. Restore it, start anew with --overwrite, or choose another "
                "`run`."
            )
        differing = [key for key in identity if key != SHARDS and about["identity"].get(key) != identity[key]]
        if differing:
            details = "; ".join(f"{key}: {about['identity'].get(key)} there, {identity[key]} here" for key in differing)
            new = any(_keywords(identity[key]) - _keywords(about["identity"].get(key)) for key in differing)
            older = (
                " An older version may have made it, which can go on with it." if new or "format" not in about else ""
            )
            raise UserError(
                f"{path}: made by another {' and '.join(differing)} ({details}). "
                f"Resume with the config it was made with, or choose another `run`.{older}"
            )
        for name, expected in about.get("sha256", {}).items():
            if sha256(path / name) != expected:
                raise ValueError(f"{name} is not what was written: its sha256 differs")
        model = load_file(path / "model.safetensors")
        optimizer = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
        made_by = int(about.get("ranks", 1)), about.get("workers")
        return Checkpoint(int(about["step"]), model, optimizer, about["identity"], *made_by)
    except UserError:
        raise
    except Exception as error:  # the readers raise whatever a damaged file makes them stumble on
        reason = " ".join(str(error).split())[:200]
        raise DamagedError(f"{path}: damaged ({reason}).") from None


def sealed(about: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a `checkpoint.json` with `digest`, a hash of all else in it: a step that another digit has become
    would go on elsewhere in the data, and nothing else would tell."""
    content = {key: value for key, value in about.items() if key != "digest"}
    return content | {"digest": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}


def _keywords(part: object) -> set[tuple[str, str]]:
    """The settings that a part of an identity has, by what they belong to."""
    own = part if isinstance(part, dict) else {}
    return {(name, key) for name, settings in own.items() if isinstance(settings, dict) for key in settings}


def newest_checkpoint(folder: Path, identity: Mapping[str, Any], say: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole, None where there is none at all; of each damaged one it is said so.

    Raises UserError as `load_checkpoint` does, or if there are checkpoints and all of them are damaged.
    """
    found = list_checkpoints(folder)
    while found:
        try:
            return load_checkpoint(found.pop(), identity)
        except DamagedError as error:  # noqa: PERF203
            if not found:
                raise UserError(f"{error} No earlier one is whole; start anew with --overwrite.") from None
            say(f"warning: {error} Going on from the one before, {found[-1].name}; the damaged one is set aside.")
    return None


def set_aside(folder: Path, step: int) -> None:
    """Rename what is newer than the checkpoint of `step`, passed over as damaged, to `damaged_step_NNNNNNNN`: it would
    count among the newest that stay."""
    for path in list_checkpoints(folder):
        if int(path.name.removeprefix("step_")) > step:
            aside = path.with_name(f"damaged_{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)


def keep_best(network: Network | Joint, folder: Path, step: int, metric: str, value: float) -> None:
    """Write the network to `folder`, as `student/` is, if it is better on held-out samples than the one there."""
    about = folder / "best.json"
    if about.is_file() and json.loads(about.read_bytes()).get(metric, 0.0) >= value:
        return
    about.unlink(missing_ok=True)
    save_network(network, folder)
    write_atomic(about, json.dumps({"step": step, metric: value}).encode())


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
