"""Relations between samples: the Gromov part of a transport between feature spaces that cannot be compared directly."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from losses.unit import unit


def relational_divergence(
    student: Tensor, teacher: Tensor, plan: Tensor | None = None, temperature: float = 0.1
) -> Tensor:
    """`mean_i KL(r_i(teacher) || r_i(student))`, `r_i` the softmax over j != i of `cos(x_i, x_j) / temperature`,
    cosines of features that are centred by the batch's mean.

    student: `[B, D_S]`, teacher: `[B, D_T]`. plan: `[B, B]` transport plan that carries the teacher's similarities
    to the students before the softmax, `(B P) S_T (B P)'`; without one the pairs are taken as they are. The
    relational form after Park et al. 2019 (arXiv 1904.05068) and Passalis and Tefas 2018 (arXiv 1803.10837).
    """
    n = len(student)
    if n < 3:  # with at most one neighbour every relation is trivially the same
        return student.sum() * 0
    student, teacher = _directions(student), _directions(teacher)
    if plan is not None:
        teacher = (n * plan) @ teacher  # S_T is a product of them: B^2 D operations instead of B^3
    log_student = F.log_softmax(_neighbours(student @ student.T) / temperature, dim=1)
    log_teacher = F.log_softmax(_neighbours(teacher @ teacher.T) / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, log_target=True, reduction="batchmean")


def _directions(x: Tensor) -> Tensor:
    return unit(x - x.mean(0))


def _neighbours(square: Tensor) -> Tensor:
    """`[B, B] -> [B, B - 1]`: every row without its diagonal entry."""
    n = len(square)
    # Between two diagonal entries lie n others.
    return square.flatten()[1:].view(n - 1, n + 1)[:, :-1].reshape(n, n - 1)
