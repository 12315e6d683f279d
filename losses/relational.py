"""Relations between samples: the Gromov part of a transport between feature spaces that cannot be compared directly."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from losses.unit import unit

LEAST_LOG = -1e4
"""Of a neighbour without weight: its share is 0, and unlike with -inf so is its term."""


def relational_divergence(
    student: Tensor,
    teacher: Tensor,
    plan: Tensor | None = None,
    temperature: float = 0.1,
    weight: Tensor | None = None,
) -> Tensor:
    """`mean_i KL(r_i(teacher) || r_i(student))`, `r_i` the softmax over j != i of `cos(x_i, x_j) / temperature`,
    cosines of features that are centred by the batch's mean.

    student: `[B, D_S]`, teacher: `[B, D_T]`. plan: `[B, B]` transport plan that carries the teacher's similarities
    to the students before the softmax, `(B P) S_T (B P)'`; without one the pairs are taken as they are. The
    relational form after Park et al. 2019 (arXiv 1904.05068) and Passalis and Tefas 2018 (arXiv 1803.10837).
    weight: `[B]` of the samples, of sum 1, in both means and as what the softmax counts a neighbour for; uniform
    without. A sample of weight 0 takes no part.
    """
    n = len(student)
    if n < 3:  # with at most one neighbour every relation is trivially the same
        return student.sum() * 0
    log_prior = None  # uniform: the softmax takes no notice of it
    if weight is None:
        weight = student.new_full((n,), 1 / n)
    else:
        weight = weight.to(student.dtype)
        log_prior = _neighbours(weight.log().expand(n, n)).clamp(min=LEAST_LOG)
    student, teacher = _directions(student, weight), _directions(teacher, weight)
    if plan is not None:
        # S_T is a product of them: B^2 D operations instead of B^3.
        teacher = plan / weight.masked_fill(weight == 0, 1)[:, None] @ teacher
    log_student, log_teacher = (_log_shares(x, temperature, log_prior) for x in (student, teacher))
    return weight @ F.kl_div(log_student, log_teacher, log_target=True, reduction="none").sum(1)


def _log_shares(x: Tensor, temperature: float, log_prior: Tensor | None) -> Tensor:
    """How each sample's relations are shared among its neighbours, `[B, B - 1]`."""
    relations = _neighbours(x @ x.T) / temperature
    return F.log_softmax(relations if log_prior is None else relations + log_prior, dim=1)


def _directions(x: Tensor, weight: Tensor) -> Tensor:
    return unit(x - weight @ x)


def _neighbours(square: Tensor) -> Tensor:
    """`[B, B] -> [B, B - 1]`: every row without its diagonal entry."""
    n = len(square)
    # Between two diagonal entries lie n others.
    return square.flatten()[1:].view(n - 1, n + 1)[:, :-1].reshape(n, n - 1)
