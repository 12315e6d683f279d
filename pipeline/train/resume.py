"""Save checkpoints, after checking that the ranks agree on their content, and resume from them."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from contextlib import suppress
from typing import Any

import torch
import yaml
from accelerate import Accelerator

from pipeline.common.errors import UserError
from pipeline.config.settings import Config, LearningRateFactors
from pipeline.data.mixture import Mixture
from pipeline.data.source import OpenDataset
from pipeline.models.distillation import Distillation
from pipeline.models.network import Joint, Network
from pipeline.models.sharded import is_sharded
from pipeline.runs.checkpoint import SHARDS, Checkpoint, newest_checkpoint, save_checkpoint, set_aside
from pipeline.train.fsdp import load_model, load_optimizer, whole
from pipeline.train.plain_data import PlainData
from pipeline.train.state import Training

log = logging.getLogger(__name__)


def save(training: Training, step: int) -> None:
    """Write a checkpoint. Statistics are averaged over ranks, and weights are checked to be equal and finite.

    Args:
        training: The run.
        step: Number of finished steps.

    Raises:
        UserError: Weights are not finite, or the checkpoint cannot be written.
        RuntimeError: Weights differ between ranks.
    """
    model, config, accelerator = training.distillation, training.config, training.accelerator
    average_buffers(model.student, accelerator)
    if (saved := training.student()) is not model.student:
        average_buffers(saved, accelerator)
    assert_equal_weights(model, accelerator)
    assert_finite_weights(model, step)
    weights = whole(model.trainable_state())
    state = {"optimizer": whole(training.optimizer.state_dict()), "scaler": _scaler_state(accelerator)}
    state["guard"] = training.guard.state_dict()
    if accelerator.is_main_process:
        checkpoint = Checkpoint(
            step,
            weights,
            state,
            training.identity,
            accelerator.num_processes,
            config.data.workers,
            training.callbacks.state_dict(),
            training.callbacks.stopped,
        )
        save_checkpoint(training.run / "checkpoints", checkpoint, config.train.keep_checkpoints)


def restore(training: Training) -> Checkpoint | None:
    """Load the newest checkpoint, if there is one.

    Args:
        training: The run, before its first step.

    Returns:
        The checkpoint; None if there is none. Its callback states are not loaded yet.

    Raises:
        UserError: The checkpoint is damaged, belongs to other settings, or is not visible to all processes.
    """
    config, run, accelerator = training.config, training.run, training.accelerator
    checkpoint = newest_checkpoint(run / "checkpoints", training.identity)
    done = checkpoint.step if checkpoint else 0
    seen = accelerator.gather(torch.tensor([done], device=accelerator.device)).tolist()
    if len(set(seen)) > 1:
        raise UserError(
            f"{run}: the processes find different checkpoints (steps {sorted(set(seen))}). Put the run folder on "
            "storage that all machines share."
        )
    if checkpoint is not None:
        if accelerator.is_main_process:
            set_aside(run / "checkpoints", done)
            _warn_of_other_batches(checkpoint, config, accelerator.num_processes)
        load_model(training.distillation, checkpoint.model)
        load_optimizer(training.optimizer, checkpoint.optimizer["optimizer"])
        training.guard.load_state_dict(checkpoint.optimizer.get("guard", {}))  # earlier versions had none
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(checkpoint.optimizer["scaler"])
    return checkpoint


def _warn_of_other_batches(checkpoint: Checkpoint, config: Config, ranks: int) -> None:
    """Log changes that make batches differ from those of an uninterrupted run."""
    if checkpoint.ranks != ranks:
        log.warning(
            f"{config.run}: the checkpoint was written by {checkpoint.ranks} processes, but {ranks} resume it. The "
            "global batch size stays the same, but batches contain other samples, so the weights will not be bitwise "
            "equal."
        )
    if checkpoint.workers not in (None, config.data.workers) and not config.data.in_memory:
        log.warning(
            f"{config.run}: the checkpoint was written with data.workers={checkpoint.workers}; now it is "
            f"{config.data.workers}. Batches contain other samples, so the weights will not be bitwise equal."
        )


def say_changes(training: Training, done: int) -> None:
    """Log what resuming removes and changes: earlier results, and the schedule if its number of steps is new.

    Args:
        training: The run; its folder still contains the earlier config and results.
        done: Number of finished steps.
    """
    run, schedule = training.run, training.schedule
    if (run / "results.json").exists() and not isinstance(training.source, PlainData):  # distill writes it again
        log.info(f"{run}: the evaluation of step {done} (results.json, evaluation/) is removed; evaluate again.")
    if schedule.train.schedule != "cosine":
        return
    with suppress(OSError, yaml.YAMLError, KeyError, TypeError):  # without a readable config, the end is unknown
        train = yaml.safe_load((run / "config.yaml").read_bytes())["train"]
        earlier = train["steps"] or train["epochs"] * schedule.steps_per_epoch
        if schedule.steps != earlier:
            log.info(f"{run}: the learning rate schedule now ends at step {schedule.steps}, not {earlier}.")


FREE = ("shards", "join", "workers", "max_faulty", "max_pixels")
"""Data settings that may change when a run is resumed."""

YOUNG: dict[str, Any] = {
    **{"fields": {}, "classes": [], "sampling": "once", "stages": [], "epoch_samples": None},
    "pairs": "correct",
}
"""Settings that checkpoints of earlier versions lack, with the values that are equivalent to their absence."""


def identity_of(
    config: Config, model: Distillation, data: OpenDataset, mixture: Mixture | None = None
) -> dict[str, Any]:
    """Make the identity of a run: everything that must not change when it is resumed, as JSON.

    Args:
        config: The config.
        model: The model.
        data: The dataset.
        mixture: The mixture, if there is one.
    """
    settings = config.model_dump(mode="json")
    identity = {
        "student": settings["student"] | {"classes": model.student.classes},
        "teacher": model.teacher_identity(),
        "losses": settings["losses"],
        "seed": config.seed,
        "data": {k: v for k, v in settings["data"].items() if k not in FREE and not (k in YOUNG and v == YOUNG[k])},
        "train": {k: settings["train"][k] for k in ("optimizer", "weight_decay", "decay_vectors", "precision")},
    }
    for name, default in (("learning_rate_factors", LearningRateFactors()), ("layer_decay", 1.0)):
        if getattr(config.train, name) != default:  # earlier checkpoints do not contain them
            identity["train"][name] = settings["train"][name]
    if mixture:
        identity["mixture"] = [
            [weight, _digest(part)] for weight, part in zip(mixture.weights, mixture.datasets, strict=True)
        ]
    found: dict[str, Any] = json.loads(json.dumps(identity))
    return found | {SHARDS: _digest(data)}


def _digest(data: OpenDataset) -> str:
    """A short hash of the training split and of joined datasets, independent of their location."""
    hashes = [shard.content for shard in data.manifest.splits["train"]]
    others = [manifest.digest() for _, manifest in data.others]
    return hashlib.sha256(" ".join([*hashes, *others]).encode()).hexdigest()[:16]


@torch.no_grad()
def average_buffers(network: Network | Joint, accelerator: Accelerator) -> None:
    """Average buffers, e.g. statistics of batch normalisation, over ranks."""
    if accelerator.num_processes > 1:
        for buffer in network.buffers():
            if buffer.is_floating_point():
                buffer.copy_(accelerator.reduce(buffer.clone(), "mean"))


def assert_equal_weights(model: Distillation, accelerator: Accelerator) -> None:
    """Check that replicated weights are identical on all ranks.

    Raises:
        RuntimeError: They differ, so gradients were not synchronised.
    """
    if accelerator.num_processes > 1:
        trained = [p.detach() for p in model.parameters() if p.requires_grad and not is_sharded(p)]
        weights = [p.double().flatten() for p in trained]
        if not weights:  # all weights are sharded, and the losses have none
            return
        sums = torch.stack([torch.stack([w.sum(), w.abs().sum()]) for w in weights]).sum(0)
        if len(torch.unique(accelerator.gather(sums[None]), dim=0)) != 1:
            raise RuntimeError("weights differ between ranks: gradients were not synchronised. Do not use this run.")


def assert_finite_weights(model: Distillation, step: int) -> None:
    """Check that weights and statistics are finite, before a checkpoint is written.

    Raises:
        UserError: They are not finite.
    """
    bad = [name for name, p in model.named_parameters() if p.requires_grad and not torch.isfinite(whole(p)).all()]
    own = ((name, b) for name, b in model.named_buffers() if not name.startswith("teacher."))
    bad += [name for name, b in own if not (b < math.inf).all()]  # -inf marks a normaliser that is not set yet
    if bad:
        raise UserError(
            f"step {step}: weights or statistics are not finite ({bad[0]} and {len(bad) - 1} others); no checkpoint "
            "was written. Lower train.learning_rate or the weight of a loss, and resume with --resume."
        )


def _scaler_state(accelerator: Accelerator) -> dict[str, Any]:
    return accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
