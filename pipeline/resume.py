"""What a run goes on from: checkpoints, written once the ranks agree on what is in them, and read back."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor

from pipeline.checkpoint import SHARDS, Checkpoint, newest_checkpoint, save_checkpoint, set_aside
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.model import Distillation
from pipeline.sharding import load_model, load_optimizer, whole
from pipeline.shards import load_dataset


def save(
    run: Path,
    step: int,
    model: Distillation,
    optimizer: Any,
    identity: dict[str, Any],
    config: Config,
    accelerator: Accelerator,
) -> None:
    """Write a checkpoint, once the ranks' statistics are averaged and their weights found equal and finite."""
    average_buffers(model, accelerator)
    assert_equal_weights(model, accelerator)
    assert_finite_weights(model, step)
    weights = whole(model.trainable_state())
    state = {"optimizer": whole(optimizer.state_dict()), "scaler": _scaler_state(accelerator)}
    if accelerator.is_main_process:
        checkpoint = Checkpoint(step, weights, state, identity, accelerator.num_processes, config.data.workers)
        save_checkpoint(run / "checkpoints", checkpoint, config.train.keep)


def go_on(
    config: Config, model: Distillation, optimizer: Any, identity: dict[str, Any], accelerator: Accelerator
) -> int:
    """Load the newest checkpoint, if there is one, and return how many steps were taken."""
    run = Path(config.run)
    checkpoint = newest_checkpoint(run / "checkpoints", identity, accelerator.print)
    done = checkpoint.step if checkpoint else 0
    seen = accelerator.gather(torch.tensor([done], device=accelerator.device)).tolist()
    if len(set(seen)) > 1:
        raise UserError(
            f"{run}: the processes see different checkpoints (steps {sorted(set(seen))}): put the run folder where all "
            "machines can read it."
        )
    if checkpoint is not None:
        if accelerator.is_main_process:
            set_aside(run / "checkpoints", done)
        if checkpoint.ranks != accelerator.num_processes:
            accelerator.print(
                f"{run}: {checkpoint.ranks} processes made the checkpoint, {accelerator.num_processes} go on: the "
                "global batch is as large, but of other samples, so the weights will not be the same bits."
            )
        if checkpoint.workers not in (None, config.data.workers) and not config.data.in_memory:
            accelerator.print(
                f"{run}: the checkpoint was made with data.workers {checkpoint.workers}, {config.data.workers} go on: "
                "batches are of other samples, so the weights will not be the same bits."
            )
        load_model(model, checkpoint.model)
        load_optimizer(optimizer, checkpoint.optimizer["optimizer"])
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(checkpoint.optimizer["scaler"])
    return done


def identity_of(config: Config, model: Distillation) -> dict[str, Any]:
    """What a checkpoint must agree on with the run that goes on from it, as JSON."""
    settings = config.model_dump(mode="json")
    identity = {
        "student": settings["student"] | {"classes": model.student.classes},
        "teacher": model.teacher_identity(),
        "losses": settings["losses"],
        "seed": config.seed,
        "data": {k: v for k, v in settings["data"].items() if k not in ("shards", "join", "workers", "max_faulty")},
        "train": {k: settings["train"][k] for k in ("optimizer", "weight_decay", "decay_vectors", "precision")},
    }
    found: dict[str, Any] = json.loads(json.dumps(identity))
    return found | {SHARDS: _digest(config)}


def _digest(config: Config) -> str:
    """A short hash of the training split's shards, in their order, and of what completes them, wherever they lie."""
    own, *joined = map(load_dataset, (config.data.shards, *config.data.join))
    hashes = [shard.sha256 for shard in own.splits["train"]]
    return hashlib.sha256(" ".join([*hashes, *(other.digest() for other in joined)]).encode()).hexdigest()[:16]


@torch.no_grad()
def average_buffers(model: Distillation, accelerator: Accelerator) -> None:
    """Give all ranks the mean of what each of them tracked on its own, such as the statistics of batch norms."""
    if accelerator.num_processes > 1:
        for buffer in model.student.buffers():
            if buffer.is_floating_point():
                buffer.copy_(accelerator.reduce(buffer.clone(), "mean"))


def assert_equal_weights(model: Distillation, accelerator: Accelerator) -> None:
    """Raises RuntimeError if weights that all ranks hold have come apart: then they were not trained together."""
    if accelerator.num_processes > 1:
        trained = [p.detach() for p in model.parameters() if p.requires_grad and not isinstance(p, DTensor)]
        weights = [p.double().flatten() for p in trained]
        sums = torch.stack([torch.stack([w.sum(), w.abs().sum()]) for w in weights]).sum(0)
        if len(torch.unique(accelerator.gather(sums[None]), dim=0)) != 1:
            raise RuntimeError("the ranks' weights differ: gradients were not synchronised. Do not use this run.")


def assert_finite_weights(model: Distillation, step: int) -> None:
    """Raises UserError rather than let a checkpoint be written that no run can go on from."""
    bad = [name for name, p in model.named_parameters() if p.requires_grad and not torch.isfinite(whole(p)).all()]
    own = ((name, b) for name, b in model.named_buffers() if not name.startswith("teacher."))
    bad += [name for name, b in own if not (b < math.inf).all()]  # -inf: a normaliser that is not fixed yet
    if bad:
        raise UserError(
            f"step {step}: weights or statistics are not finite ({bad[0]} and {len(bad) - 1} others), no checkpoint "
            "was written. Lower train.learning_rate or a loss's weight, and go on from the last one with --resume."
        )


def _scaler_state(accelerator: Accelerator) -> dict[str, Any]:
    return accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
