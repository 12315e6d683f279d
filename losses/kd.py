"""Knowledge distillation from logits (Hinton, Vinyals and Dean 2015, arXiv 1503.02531)."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Gt
from torch import Tensor
from torch.nn import functional as F

from losses.base import Batch, Dims, Features, Loss
from losses.logits import paired_classes, paired_logits


class KD(Loss):
    """Knowledge distillation: KL divergence between softened class probabilities.

    `loss = T^2 * KL(softmax(teacher / T) || softmax(student / T))`, averaged over the batch (or its pixels). Requires
    no labels.

    Args:
        temperature: T.

    Raises:
        ValueError: Teacher and student do not have logits of the same number of classes.
    """

    needs_teacher_logits = True
    needs_student_logits = True
    reads_pixels = True
    per_sample = True

    def __init__(self, student: Dims, teacher: Dims, *, temperature: Annotated[float, Gt(0)] = 4.0) -> None:
        super().__init__()
        paired_classes("KD", student, teacher)
        self.temperature = temperature

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        s, t = paired_logits(student, teacher)
        log_p_student = F.log_softmax(s / self.temperature, dim=1)
        log_p_teacher = F.log_softmax(t / self.temperature, dim=1)
        divergence = F.kl_div(log_p_student, log_p_teacher, log_target=True, reduction="batchmean")
        return divergence * self.temperature**2
