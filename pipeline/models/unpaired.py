"""Batches in which some samples lack the teacher's input: losses that need it use the other samples."""

from __future__ import annotations

import torch
from torch import Tensor

from losses import Features
from losses.base import Batch, Loss, LossOutput
from losses.gather import least_over_ranks

PER_SAMPLE = ("label", "group", "index", "weight", "mask")


def term(loss: Loss, student: Features, teacher: Features | None, batch: Batch) -> LossOutput:
    """Compute a loss over the samples that are `paired`, bool `[B]`.

    All samples are used if the batch does not have `paired`, or if the loss needs no teacher. Every rank uses the same
    number of samples, that of the rank with the fewest, since losses gather equal parts. With fewer than two samples,
    the loss is not run, which keeps placeholders out of its queue, and the result is `nothing`.

    Args:
        loss: The loss.
        student: Features of the student.
        teacher: Features of the teacher; None without a teacher.
        batch: The batch.
    """
    if "paired" not in batch or not loss.needs_teacher or teacher is None:
        return loss.with_metrics(student, teacher, batch)  # type: ignore[arg-type]
    count = int(least_over_ranks(batch["paired"].sum()))
    if count < 2:
        return LossOutput(nothing(loss, student))
    rows = batch["paired"].nonzero().flatten()[:count]
    own = {name: batch[name][rows] for name in PER_SAMPLE if name in batch}
    return loss.with_metrics(_take(student, rows), _take(teacher, rows), own)


def nothing(loss: Loss, student: Features) -> Tensor:
    """Return 0, with zero gradients for all parameters that the loss trains, since DDP expects all gradients."""
    of_student = [student.pooled, *student.maps, *([] if student.logits is None else [student.logits])]
    own = [p for p in loss.parameters() if p.requires_grad]
    return torch.stack([(0 * x).sum() for x in (*of_student, *own)]).sum()


def _take(features: Features, rows: Tensor) -> Features:
    logits = features.logits
    return Features(features.pooled[rows], [m[rows] for m in features.maps], None if logits is None else logits[rows])
