"""Batches in which some samples lack the teacher's view: the losses that need it see the others."""

from __future__ import annotations

import torch
from torch import Tensor

from losses import Features
from losses.base import Batch, Loss
from losses.gather import least_over_ranks

PER_SAMPLE = ("label", "group", "index", "weight", "mask")


def term(loss: Loss, student: Features, teacher: Features | None, batch: Batch) -> Tensor | None:
    """The loss of the samples that are `paired [B]`, bool; of all where the batch does not say or no teacher is needed.

    Each rank gives as many, those of the one with the fewest: losses gather equal parts. With fewer than two there is
    nothing to compare, and it is None: the loss is not run, for what stands in for a view must enter no queue.
    """
    if "paired" not in batch or not loss.needs_teacher or teacher is None:
        return loss(student, teacher, batch)  # type: ignore[no-any-return]
    count = int(least_over_ranks(batch["paired"].sum()))
    if count < 2:
        return None
    rows = batch["paired"].nonzero().flatten()[:count]
    own = {name: batch[name][rows] for name in PER_SAMPLE if name in batch}
    return loss(_take(student, rows), _take(teacher, rows), own)  # type: ignore[no-any-return]


def nothing(loss: Loss, student: Features) -> Tensor:
    """0, with a gradient of 0 for all that the loss trains: DDP waits for every parameter at every step."""
    of_student = [student.pooled, *student.maps, *([] if student.logits is None else [student.logits])]
    own = [p for p in loss.parameters() if p.requires_grad]
    return torch.stack([(0 * x).sum() for x in (*of_student, *own)]).sum()


def _take(features: Features, rows: Tensor) -> Features:
    logits = features.logits
    return Features(features.pooled[rows], [m[rows] for m in features.maps], None if logits is None else logits[rows])
