"""Batches in which some samples lack the teacher's view: the losses that need it see the others."""

from __future__ import annotations

import torch
from torch import Tensor

from losses import Features
from losses.base import Batch, Loss
from losses.gather import least_over_ranks

PER_SAMPLE = ("label", "group", "index", "weight", "mask")


def term(loss: Loss, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
    """The loss of the samples that are `paired [B]`, bool; of all where the batch does not say or no teacher is needed.

    Each rank gives as many, those of the one with the fewest: losses gather equal parts. With fewer than two the
    term is 0.
    """
    if "paired" not in batch or not loss.needs_teacher or teacher is None:
        return loss(student, teacher, batch)  # type: ignore[no-any-return]
    paired = batch["paired"]
    count = int(least_over_ranks(paired.sum()))
    # The graph has to be the same at every step, so a term that has no samples is made of all and counts nothing.
    rows = paired.nonzero().flatten()[:count] if count > 1 else torch.arange(len(paired), device=paired.device)
    own = {name: batch[name][rows] for name in PER_SAMPLE if name in batch}
    value: Tensor = loss(_take(student, rows), _take(teacher, rows), own)
    return value * float(count > 1)


def _take(features: Features, rows: Tensor) -> Features:
    logits = features.logits
    return Features(features.pooled[rows], [m[rows] for m in features.maps], None if logits is None else logits[rows])
