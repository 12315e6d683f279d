"""Checkpoints, written atomically."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.common.console import rank
from pipeline.common.errors import UserError
from pipeline.common.files import sha256, write_atomic
from pipeline.common.run_format import FORMAT, check_format
from pipeline.config.renamed import with_current_names
from pipeline.models.network import Joint, Network, save_network
from pipeline.runs.reader import lower_is_better

log = logging.getLogger(__name__)

BEST = "best"
SHARDS = "shards"
"""Key of the training data's hash in the identity. Checkpoints of earlier versions do not contain it."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of training after a step.

    Attributes:
        step: Number of steps taken.
        model: All tensors that training changes.
        optimizer: State dict of the optimiser.
        identity: The components of the run (student, teacher, losses), for validation on resume.
        ranks: Number of processes that the run used.
        workers: Number of loader workers of each; None if an earlier version did not store it.
        callbacks: Callback -> its state, tensors and JSON values; empty in checkpoints of earlier versions.
        stopped: Callback that ended the run -> its reason.
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    identity: dict[str, Any]
    ranks: int = 1
    workers: int | None = None
    callbacks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    stopped: Mapping[str, str] = field(default_factory=dict)


class DamagedError(UserError):
    """Raised if the files of a checkpoint differ from what was written."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write `folder/step_NNNNNNNN` and delete all but the newest `keep` checkpoints.

    The checkpoint is written under a temporary name, flushed to disk and then renamed.

    Args:
        folder: The folder `checkpoints` of the run.
        checkpoint: The state.
        keep: Number of checkpoints to keep.

    Returns:
        The folder of the checkpoint.

    Raises:
        UserError: The checkpoint could not be written, e.g. because the disk is full. Existing ones are unchanged.
    """
    target = folder / f"step_{checkpoint.step:08d}"
    part = folder / f".part_{checkpoint.step:08d}"
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        save_file({k: v.contiguous() for k, v in checkpoint.model.items()}, part / "model.safetensors")
        torch.save(checkpoint.optimizer, part / "optimizer.pt")
        if checkpoint.callbacks:
            _write_callbacks(checkpoint, part)
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
        last = f"the last complete one is {kept[-1]}" if kept else "there is no earlier one"
        raise UserError(
            f"{target}: the checkpoint could not be written ({error}); {last}. "
            "Free disk space (or lower train.keep_checkpoints) and resume with `--resume`."
        ) from None
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(p for p in folder.glob("step_*") if re.fullmatch(r"step_\d{8,}", p.name))


def load_checkpoint(path: Path, identity: Mapping[str, Any]) -> Checkpoint:
    """Read a checkpoint to the CPU, without executing any code in it.

    Args:
        path: The folder of the checkpoint.
        identity: The components of this run (student, teacher, losses, shards).

    Raises:
        UserError: The checkpoint belongs to a run with another identity or other data. The message lists the
            differences.
        DamagedError: The checkpoint is damaged.
    """
    try:
        about = json.loads((path / "checkpoint.json").read_bytes())
        check_format(about.get("format"), path)
        if "digest" in about and about != sealed(about):  # earlier versions do not have it
            raise ValueError("checkpoint.json does not match its digest")
        made_of = with_current_names(about["identity"])
        if identity.get(SHARDS) != made_of.get(SHARDS, identity.get(SHARDS)):
            raise UserError(
                f"{path}: the training shards have changed: data.shards or data.join refers to another dataset, or the "
                "dataset was packed again. Restore the dataset, start again with --overwrite, or choose another `run`."
            )
        differing = [key for key in identity if key != SHARDS and made_of.get(key) != identity[key]]
        if differing:
            details = "; ".join(
                f"{key}: {made_of.get(key)} in the checkpoint, {identity[key]} in this run" for key in differing
            )
            new = any(_keywords(identity[key]) - _keywords(made_of.get(key)) for key in differing)
            older = " If an older version wrote it, resume with that version." if new or "format" not in about else ""
            raise UserError(
                f"{path}: {' and '.join(differing)} changed since it was written ({details}). "
                f"Resume with the original config, or choose another `run`.{older}"
            )
        for name, expected in about.get("sha256", {}).items():
            if sha256(path / name) != expected:
                raise ValueError(f"the SHA-256 of {name} does not match checkpoint.json")
        model = load_file(path / "model.safetensors")
        optimizer = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
        made_by = int(about.get("ranks", 1)), about.get("workers")
        return Checkpoint(int(about["step"]), model, optimizer, made_of, *made_by, *_read_callbacks(path))
    except UserError:
        raise
    except Exception as error:  # damaged files can raise any error in the readers
        reason = " ".join(str(error).split())[:200]
        raise DamagedError(f"{path}: damaged ({reason}).") from None


def _write_callbacks(checkpoint: Checkpoint, folder: Path) -> None:
    """Write `callbacks.json`, and `callbacks.safetensors` with the tensors of callback number N as `N/KEY`."""
    tensors: dict[str, Tensor] = {}
    states = []
    for number, (name, state) in enumerate(checkpoint.callbacks.items()):
        own = {key: value for key, value in state.items() if isinstance(value, Tensor)}
        tensors |= {f"{number}/{key}": value.detach().cpu().contiguous() for key, value in own.items()}
        states.append({"name": name, "state": {key: value for key, value in state.items() if key not in own}})
    about = {"callbacks": states, "stopped": dict(checkpoint.stopped)}
    (folder / "callbacks.json").write_text(json.dumps(about, indent=1))
    save_file(tensors, folder / "callbacks.safetensors")


def _read_callbacks(folder: Path) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    if not (folder / "callbacks.json").is_file():
        return {}, {}
    about, tensors = json.loads((folder / "callbacks.json").read_bytes()), load_file(folder / "callbacks.safetensors")
    states = {}
    for number, own in enumerate(about["callbacks"]):
        held = {key.partition("/")[2]: value for key, value in tensors.items() if key.partition("/")[0] == str(number)}
        states[own["name"]] = own["state"] | held
    return states, about["stopped"]


def sealed(about: Mapping[str, Any]) -> dict[str, Any]:
    """Add `digest`, a hash of all other entries, to the content of a `checkpoint.json`.

    Without it, a run whose step number is damaged would silently resume at another position in the data.
    """
    content = {key: value for key, value in about.items() if key != "digest"}
    return content | {"digest": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}


def _keywords(part: object) -> set[tuple[str, str]]:
    """The settings in a part of an identity, as pairs of component and keyword."""
    own = part if isinstance(part, dict) else {}
    return {(name, key) for name, settings in own.items() if isinstance(settings, dict) for key in settings}


def newest_checkpoint(folder: Path, identity: Mapping[str, Any]) -> Checkpoint | None:
    """Load the newest undamaged checkpoint.

    Args:
        folder: The folder `checkpoints` of the run.
        identity: See `load_checkpoint`.

    Returns:
        None if there are no checkpoints.

    Raises:
        UserError: As `load_checkpoint`, or all checkpoints are damaged.
    """
    found = list_checkpoints(folder)
    while found:
        try:
            return load_checkpoint(found.pop(), identity)
        except DamagedError as error:  # noqa: PERF203
            if not found:
                raise UserError(
                    f"{error} There is no earlier undamaged checkpoint; start again with --overwrite."
                ) from None
            if rank() == 0:
                log.warning(f"{error} Resuming from the previous one, {found[-1].name}; the damaged one is renamed.")
    return None


def set_aside(folder: Path, step: int) -> None:
    """Rename damaged checkpoints newer than `step` to `damaged_step_NNNNNNNN`, so that they do not count as newest."""
    for path in list_checkpoints(folder):
        if int(path.name.removeprefix("step_")) > step:
            aside = path.with_name(f"damaged_{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)


def keep_best(network: Network | Joint, folder: Path, step: int, metric: str, value: float) -> bool:
    """Write the network to `folder`, in the format of `student/`, if its metric is better than the stored best one.

    If values are equal, the first one is kept. NaN is never the best. A network that was selected by another metric is
    not compared: its folder is renamed to `best_METRIC`.

    Args:
        network: The student.
        folder: The folder `best` of the run.
        step: Number of steps taken.
        metric: Name of the metric.
        value: Value of the metric on held-out samples.

    Returns:
        Whether it was written.
    """
    about = folder / "best.json"
    falls = lower_is_better(metric)
    other, best = _read_best(about)
    if other not in (None, metric):
        aside = folder.with_name(f"{folder.name}_{other}")
        log.warning(f"{folder}: was selected by {other}, and this run selects by {metric}; renamed to {aside.name}/.")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        best = None
    if math.isnan(value) or (best is not None and (best <= value if falls else best >= value)):
        return False
    about.unlink(missing_ok=True)
    save_network(network, folder)
    written = {"step": step, metric: value, "monitor": metric, "mode": "min" if falls else "max"}
    write_atomic(about, json.dumps(written).encode())
    return True


def _read_best(path: Path) -> tuple[str | None, float | None]:
    """The metric in `best.json` and its value; None if there is no such file, or it is damaged."""
    try:
        row = json.loads(path.read_bytes())
        metric = row["monitor"] if "monitor" in row else next(key for key in row if key != "step")  # before 0.2
        best = float(row[metric])
    except (OSError, ValueError, KeyError, TypeError, StopIteration, RecursionError):
        return None, None
    return (None, None) if math.isnan(best) or not re.fullmatch(r"[\w@]+", metric) else (metric, best)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
