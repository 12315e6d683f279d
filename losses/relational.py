"""The relational term: similarities between samples, matched across feature spaces as in Gromov-Wasserstein."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from losses.rows import sum_by_rows
from losses.unit import unit

TEMPERATURE = 0.1
"""Temperature of the softmax over similarities."""

LEAST_LOG = -1e4
"""Log weight of the sample itself and of neighbours with weight 0. With -inf, their terms would be nan, not 0."""


def relational_divergence(
    student: Tensor,
    teacher: Tensor,
    plan: Tensor | None = None,
    temperature: float = TEMPERATURE,
    weight: Tensor | None = None,
) -> Tensor:
    """Divergence between the similarity structures of student and teacher (Park et al. 2019; Passalis and Tefas 2018).

    `mean_i KL(r_i(teacher) || r_i(student))`, where `r_i` is the softmax over j != i of `cos(x_i, x_j) / temperature`
    for features minus their batch mean. arXiv 1904.05068 and 1803.10837.

    Args:
        student: `[B, D_S]`, the global batch, identical on all ranks.
        teacher: `[B, D_T]`, the global batch, identical on all ranks.
        plan: Transport plan `[B, B]` that maps the teacher's similarities to the student's samples before the softmax,
            `(B P) S_T (B P)'`. None uses the pairs as they are.
        temperature: Temperature of the softmax.
        weight: Weights of the samples, `[B]`, with sum 1, in both means and for neighbours in the softmax. None means
            uniform. Samples with weight 0 are ignored.

    Returns:
        A scalar; 0 for fewer than 3 samples.
    """
    n = len(student)
    if n < 3:  # with at most one neighbour, all softmax distributions are the same
        return student.sum() * 0
    log_prior = None  # uniform weights do not change the softmax
    if weight is None:
        weight = student.new_full((n,), 1 / n)
    else:
        weight = weight.to(student.dtype)
        log_prior = weight.log().clamp(min=LEAST_LOG)
    carried = directions(teacher, weight)
    if plan is not None:
        # S_T is a product of unit vectors, so this takes B^2 D operations instead of B^3.
        carried = plan / weight.masked_fill(weight == 0, 1)[:, None] @ carried
    return divergence_of_directions(directions(student, weight), carried, weight, temperature, log_prior)


def directions(x: Tensor, weight: Tensor) -> Tensor:
    """Centre `x [B, D]` by its mean under `weight [B]`, and L2-normalise the rows."""
    return unit(x - weight @ x)


def divergence_of_directions(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor,
    temperature: float = TEMPERATURE,
    log_prior: Tensor | None = None,
) -> Tensor:
    """`relational_divergence` of features that are already centred, normalised and transported.

    For more than `rows.LARGEST_WHOLE` samples, no `[B, B]` matrix is stored.

    Args:
        student: Unit vectors, `[B, D_S]`.
        teacher: Unit vectors or their transported means, `[B, D_T]`.
        weight: Weights of the samples, `[B]`.
        temperature: Temperature of the softmax.
        log_prior: Log weights of the neighbours, `[B]`.
    """

    def of_rows(rows: slice) -> Tensor:
        log_student, log_teacher = (_log_shares(x, rows, temperature, log_prior) for x in (student, teacher))
        return weight[rows] @ F.kl_div(log_student, log_teacher, log_target=True, reduction="none").sum(1)

    return sum_by_rows(of_rows, len(student), len(student))


def _log_shares(x: Tensor, rows: slice, temperature: float, log_prior: Tensor | None) -> Tensor:
    """Log softmax over the relations of some samples to all others, `[rows, B]`; the sample itself is excluded."""
    relations = x[rows] @ x.T / temperature
    if log_prior is not None:
        relations = relations + log_prior
    relations.diagonal(rows.start).fill_(LEAST_LOG)
    return F.log_softmax(relations, dim=1)
