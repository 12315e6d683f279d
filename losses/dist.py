"""DIST: distillation of relations between predictions (Huang et al. 2022, arXiv 2205.10536)."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from losses.base import Batch, Dims, Features, Loss
from losses.gather import gather
from losses.logits import paired_classes, paired_logits

CONSTANT = 1e-3
"""Probabilities whose deviation from their mean is below this fraction of their norm count as constant."""


class DIST(Loss):
    """Distillation of relations: match the correlations of predictions between and within classes.

    `loss = T^2 * (beta * mean_i[1 - r(S_i., T_i.)] + gamma * mean_k[1 - r(S_.k, T_.k)])`, where r is Pearson's
    correlation, and S and T are the probabilities `[N, K]` of the global batch at temperature T. Requires no labels.
    The defaults are those published for CIFAR-100. With N = 1, the second term is the constant 1. As the student's
    probabilities become constant, the gradient of a correlation would grow without bound. Therefore, once their
    deviation from the mean is below 1e-3 of their norm, the denominator of the correlation is held fixed.

    Args:
        beta: Weight of the correlation over the classes of each sample.
        gamma: Weight of the correlation over the samples for each class.
        temperature: T, for student and teacher.

    Raises:
        ValueError: Teacher and student do not both have logits for the same classes (at least two).
    """

    needs_teacher_logits = True
    needs_student_logits = True

    def __init__(
        self,
        student: Dims,
        teacher: Dims,
        *,
        beta: Annotated[float, Ge(0)] = 2.0,
        gamma: Annotated[float, Ge(0)] = 2.0,
        temperature: Annotated[float, Gt(0)] = 4.0,
    ) -> None:
        super().__init__()
        paired_classes("DIST", student, teacher, least=2)
        self.beta, self.gamma, self.temperature = beta, gamma, temperature

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        # [N, K]
        s, t = ((gather(x) / self.temperature).softmax(1) for x in paired_logits(student, teacher))
        inter_class, intra_class = 1 - _correlation(s, t).mean(), 1 - _correlation(s.T, t.T).mean()
        return (self.beta * inter_class + self.gamma * intra_class) * self.temperature**2


def _correlation(student: Tensor, teacher: Tensor) -> Tensor:
    """Pearson's correlation of each row with the same row of the other matrix; 0 if one of them is constant."""
    s, t = (x - x.mean(1, keepdim=True) for x in (student, teacher))
    deviation = torch.maximum(s.norm(dim=1), CONSTANT * student.norm(dim=1).detach())
    return (s * t).sum(1) / (deviation * t.norm(dim=1) + 1e-8)
