"""Validation on held-out samples during training, and `best/`."""

from __future__ import annotations

import logging

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from pipeline.common.errors import UserError
from pipeline.config.settings import Config
from pipeline.data.skipped import Skipped, counts, in_words
from pipeline.data.source import Source
from pipeline.data.stream import EvalStream, loader
from pipeline.evaluate.segmentation import confusion, scores
from pipeline.models.network import Joint, Network
from pipeline.runs.checkpoint import BEST, keep_best
from pipeline.runs.reader import format_metric, read_log
from pipeline.train.held_out import no_labels
from pipeline.train.held_out_pairs import held_out_loss, held_out_retrieval
from pipeline.train.metrics_log import Log
from pipeline.train.resume import average_buffers
from pipeline.train.state import Training

logger = logging.getLogger(__name__)


def check_missing(training: Training, step: int) -> bool:
    """Whether the validation of the step to resume from is missing, because the run was stopped there."""
    every = training.config.evaluation.every
    if training.held_out is None or step == 0 or not training.schedule.is_due(every, step):
        return False
    found = read_log(training.run / "metrics.jsonl", []).get(step, {})
    missing = [not any(name.startswith("held_out/") for name in found)]
    return bool(broadcast_object_list(missing)[0])  # other processes may have no access to the run folder


def check_held_out(training: Training, step: int, log: Log) -> dict[str, float]:
    """Validate the student, log the result, and save the student if it is the best so far.

    Args:
        training: The run.
        step: Number of the step.
        log: The log.

    Returns:
        Name -> value of each metric.
    """
    held_out = training.held_out
    assert held_out is not None
    student = training.student()
    average_buffers(student, training.accelerator)
    found: dict[str, float] = {}
    if held_out.scored:
        found |= [held_out_score(student, held_out.source, training.config, training.accelerator)]
    if held_out.monitor == "loss":
        found |= held_out_loss(training, student)
    elif held_out.monitor.startswith("R@"):
        found |= held_out_retrieval(training, student)
    log.scalars(step, {f"held_out/{metric}": value for metric, value in found.items()})
    if training.accelerator.is_main_process:
        monitor, value = held_out.monitor, found[held_out.monitor]
        better = keep_best(student, training.run / BEST, step, monitor, value)
        shown = f"{monitor} {format_metric(monitor, value)}{', the best so far' if better else ''}"
        logger.info(f"step {step}/{training.schedule.steps}  validation: {shown}")
    return found


@torch.no_grad()
def held_out_score(
    student: Network | Joint, source: Source, config: Config, accelerator: Accelerator
) -> tuple[str, float]:
    """Evaluate the student on a split, distributed over all ranks.

    Args:
        student: The student.
        source: The split.
        config: The config.
        accelerator: The accelerator.

    Returns:
        `top1`, or `mIoU` for masks, and its value in [0, 1].

    Raises:
        UserError: No sample has a label.
    """
    views = {"student": student.view}
    ranks, rank = accelerator.num_processes, accelerator.process_index
    stream = EvalStream(source, views, batch=64 if source.task.mask else 256, ranks=ranks, rank=rank)
    tally = torch.zeros(source.task.classes, source.task.classes, device=accelerator.device, dtype=torch.int64)
    student.eval()
    skipped: list[Skipped] = []
    for batch in loader(stream, config.data.workers, accelerator.device, skipped):
        skipped += batch["skipped"]
        with accelerator.autocast():
            logits = student(batch["student"]).logits
        assert logits is not None  # checked before the run starts
        tally += confusion(logits.argmax(1), batch["mask" if source.task.mask else "label"], source.task.classes)
    student.train()
    tally = accelerator.reduce(tally, "sum")
    if skipped:
        found = in_words(counts(skipped))
        logger.warning(f"evaluation.every: skipped {len(skipped)} samples ({found})")
    if not tally.any():
        raise UserError(no_labels(source))
    if source.task.mask:
        return "mIoU", scores(tally, list(map(str, range(source.task.classes))))["mIoU"]
    return "top1", tally.trace().item() / tally.sum().item()
