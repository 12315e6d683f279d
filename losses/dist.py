"""DIST: distillation of relations between predictions (Huang et al. 2022, arXiv 2205.10536)."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt
from torch import Tensor

from losses.base import Batch, Dims, Features, Loss
from losses.gather import gather
from losses.logits import paired_classes, paired_logits


class DIST(Loss):
    """`T^2 * (beta * mean_i[1 - r(S_i., T_i.)] + gamma * mean_k[1 - r(S_.k, T_.k)])`, r Pearson's correlation.

    S and T are the `[N, K]` probabilities at temperature T of the global batch: beta weighs each sample's relation
    between its classes, gamma each class's relation between the samples. Needs no labels. The defaults are those
    published for CIFAR-100. With N = 1 the second term is the constant 1.

    Raises ValueError if teacher and student do not have logits of the same, at least two, classes.
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


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of each row of `a` with the same row of `b`; 0 where one of them is constant."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)
