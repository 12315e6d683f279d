"""Relational distillation as a separate loss, for comparison in the study."""

from __future__ import annotations

from torch import Tensor

from losses import Dims, Features, Loss
from losses.base import Batch
from losses.gather import gather
from losses.relational import relational_divergence


class RelationalKL(Loss):
    """KL divergence between the softmax similarities of teacher and student within the batch."""

    def __init__(self, student: Dims, teacher: Dims) -> None:
        super().__init__()

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        return relational_divergence(gather(student.pooled), gather(teacher.pooled))
