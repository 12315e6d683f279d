"""One optimiser step, and the tasks after it: log line, validation, checkpoint."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from pipeline.data.mixture import SourceCounts
from pipeline.data.skipped import Ledger
from pipeline.data.views import Batch
from pipeline.models.distillation import DistillationOutput
from pipeline.train.accumulate import parts_of, total
from pipeline.train.fsdp import average_gradients, whole
from pipeline.train.metrics_log import Log
from pipeline.train.nonfinite import NonFinite
from pipeline.train.resume import save
from pipeline.train.state import Training
from pipeline.train.validation import check_held_out

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Records:
    """The records that a run keeps during training.

    Attributes:
        log: The log.
        ledger: Skipped samples.
        finite: Steps with a non-finite gradient.
        sources: Number of samples of each source of a mixture.
    """

    log: Log
    ledger: Ledger
    finite: NonFinite
    sources: SourceCounts | None


@dataclass(frozen=True)
class StepResult:
    """The result of a step.

    Attributes:
        output: The losses and their metrics, without the graph.
        learning_rate: The learning rate.
        gradient_norm: The gradient norm before clipping.
        taken: False if the step was skipped because of a non-finite gradient.
    """

    output: DistillationOutput
    learning_rate: float
    gradient_norm: Tensor
    taken: bool


def train_step(training: Training, records: Records, step: int, batch: Batch) -> StepResult:
    """Forward, backward, clip, optimiser step. With `train.accumulate`, forward and backward run once per part.

    Args:
        training: The run.
        records: The records of the run, which decide whether the step is skipped.
        step: Step number, starting at 1.
        batch: The samples of this rank.
    """
    config, accelerator, optimizer = training.config, training.accelerator, training.optimizer
    finite, throughput = records.finite, records.log.throughput
    # Randomness in networks is a function of the step, so a resumed run repeats it.
    torch.manual_seed(hash((config.seed, step, accelerator.process_index)))
    training.distillation.student.begin_step(step)
    rate = training.schedule.learning_rate(step)
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)  # earlier checkpoints have no factors
    training.guard.begin(training.schedule.weights(step))
    finite.begin()
    outputs: list[DistillationOutput] = []
    for part, shares in parts_of(batch, config.train.accumulate, training.distillation):
        with accelerator.autocast(), throughput.counting():
            output = training.model(part, traced=training.guard.is_due(step) and not outputs, shares=shares)
        for warning in training.guard.check(step, part, output):
            if accelerator.is_main_process:
                log.warning(warning)
        loss = output.loss
        outputs.append(output.detached())
        del output  # lets the backward pass free the graph
        with throughput.counting():
            accelerator.backward(loss)
    throughput.end_step()
    output = total(outputs)
    if training.spare is not None:
        average_gradients(training.distillation, accelerator)
    training.distillation.student.drop_frozen_gradients()
    finite.watch(accelerator)
    norm = _clip(training)
    taken = not finite.skips(step, batch, output, norm)
    if taken or accelerator.scaler is not None:  # if not taken, the scaler skips the step and lowers the scale
        optimizer.step()
    optimizer.zero_grad()
    return StepResult(output, rate, norm, taken)


def _clip(training: Training) -> Tensor:
    """Clip the gradients, and return their norm before."""
    accelerator, limit = training.accelerator, training.config.train.clip or math.inf
    if training.spare is not None:  # weights are sharded
        return whole(accelerator.clip_grad_norm_(training.model.parameters(), limit))
    accelerator.unscale_gradients()
    return clip_grad_norm_(training.model.parameters(), limit)  # Accelerate's own would import torch.distributed.tensor


def after_step(
    training: Training, records: Records, step: int, batch: Batch, result: StepResult, stopping: bool
) -> bool:
    """Log, validate and write a checkpoint, if due, and call the callbacks.

    Args:
        training: The run.
        records: The records of the run.
        step: Number of the step.
        batch: The batch of the step.
        result: The result of the step.
        stopping: Whether the run stops here because of a signal. It then logs and writes a checkpoint, but leaves the
            validation to the resumed run.

    Returns:
        Whether this was the last step, according to the schedule or a callback.
    """
    config, accelerator, callbacks = training.config, training.accelerator, training.callbacks
    schedule = training.schedule
    if result.taken:
        records.log.add(result.output, batch)
    callbacks.call("on_step", training, step, result.output.scalars())
    last = step == schedule.steps or callbacks.asked(accelerator)
    if step % config.train.log_every == 0 or last or stopping:  # all steps are logged before the run stops
        write_log(training, records, step, result)
    if training.held_out is not None and (schedule.is_due(config.evaluation.every, step) or last) and not stopping:
        validate(training, records, step)
        if callbacks.asked(accelerator) and not last:
            last = True
            write_log(training, records, step, result)
    if (schedule.is_due(config.train.checkpoint_every, step) and records.finite.row == 0) or last or stopping:
        records.ledger.share(accelerator)
        save(training, step)
        callbacks.call("on_checkpoint", training, step)
    return last


def write_log(training: Training, records: Records, step: int, result: StepResult) -> None:
    """Write a log line, unless this step already has one."""
    log, ledger = records.log, records.ledger
    if log.written:
        return
    ledger.share(training.accelerator)
    rate, norm, skipped, undone = result.learning_rate, result.gradient_norm, ledger.counts(), records.finite.steps
    drawn = records.sources.upto(step) if records.sources else {}
    weights, metrics = training.distillation.weights, result.output.metrics
    log.write(step, rate, norm, weights, metrics, training.guard, skipped, undone, drawn)


def validate(training: Training, records: Records, step: int) -> None:
    """Validate, and pass the metrics to the callbacks."""
    training.callbacks.call("on_validation", training, step, check_held_out(training, step, records.log))
