"""Relations between samples: the Gromov part of a transport between feature spaces that cannot be compared directly."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from losses.rows import sum_by_rows
from losses.unit import unit

TEMPERATURE = 0.1

LEAST_LOG = -1e4
"""Of the sample itself, and of a neighbour without weight: its share is 0, and unlike with -inf so is its term."""


def relational_divergence(
    student: Tensor,
    teacher: Tensor,
    plan: Tensor | None = None,
    temperature: float = TEMPERATURE,
    weight: Tensor | None = None,
) -> Tensor:
    """`mean_i KL(r_i(teacher) || r_i(student))`, `r_i` the softmax over j != i of `cos(x_i, x_j) / temperature`,
    cosines of features that are centred by the batch's mean.

    student: `[B, D_S]`, teacher: `[B, D_T]`, of the global batch and equal on all ranks. plan: `[B, B]` transport plan
    that carries the teacher's similarities to the students before the softmax, `(B P) S_T (B P)'`; without one the
    pairs are taken as they are. The relational form after Park et al. 2019 (arXiv 1904.05068) and Passalis and Tefas
    2018 (arXiv 1803.10837).
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
        log_prior = weight.log().clamp(min=LEAST_LOG)
    carried = directions(teacher, weight)
    if plan is not None:
        # S_T is a product of them: B^2 D operations instead of B^3.
        carried = plan / weight.masked_fill(weight == 0, 1)[:, None] @ carried
    return divergence_of_directions(directions(student, weight), carried, weight, temperature, log_prior)


def directions(x: Tensor, weight: Tensor) -> Tensor:
    """`[B, D]` centred by the mean under `weight [B]` and L2-normalised."""
    return unit(x - weight @ x)


def divergence_of_directions(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor,
    temperature: float = TEMPERATURE,
    log_prior: Tensor | None = None,
) -> Tensor:
    """`relational_divergence` of what has been centred, normalised and carried; log_prior: `[B]`, of the neighbours.

    Beyond `rows.LARGEST_WHOLE` samples no `[B, B]` is held.
    """

    def of_rows(rows: slice) -> Tensor:
        log_student, log_teacher = (_log_shares(x, rows, temperature, log_prior) for x in (student, teacher))
        return weight[rows] @ F.kl_div(log_student, log_teacher, log_target=True, reduction="none").sum(1)

    return sum_by_rows(of_rows, len(student), len(student))


def _log_shares(x: Tensor, rows: slice, temperature: float, log_prior: Tensor | None) -> Tensor:
    """How those samples' relations are shared among all others, `[rows, B]`: nothing is the sample's own."""
    relations = x[rows] @ x.T / temperature
    if log_prior is not None:
        relations = relations + log_prior
    relations.diagonal(rows.start).fill_(LEAST_LOG)
    return F.log_softmax(relations, dim=1)
