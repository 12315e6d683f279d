"""A linear probe of whether two feature vectors belong together: their canonical correlations (Hotelling 1936).

Canonical components are pairs of directions in the two feature spaces whose projections u and v correlate most, by
`rho`. For Gaussian features, the log-likelihood ratio of "u and v belong together" to "they are independent" is, per
component and up to a constant, `rho u v / (1 - rho^2) - rho^2 (u^2 + v^2) / (2 (1 - rho^2))`. So what the student
predicts well counts most, and what it does not predict counts nothing.

Samples are divided into folds. A pair must not be judged by a probe that was fitted to it, which would find it
plausible even if it is mismatched. Directions fitted to few samples correlate in these samples by chance, so `rho` is
measured on other samples, too. Each fold is therefore judged by directions from two other folds, with `rho` from the
remaining one. All of this is computed in closed form from decayed moments of the batches: there is no learning rate,
and the probe never lags behind the student.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

FOLDS = 4
RIDGE = 0.1  # relative to the mean variance of the features
LEAST_VARIANCE = 1e-4  # of features that vary at all; the covariance of others is rounding errors
COMPONENTS = 32
LARGEST = 0.95  # correlation, which keeps the likelihood ratio finite


class MatchProbe(nn.Module):
    """Learns how the features of two networks correlate, and computes the cost of pairs.

    Args:
        student: D_S, size of the student's features.
        teacher: D_T, size of the teacher's features.
        horizon: Number of samples after which moments have decayed by a factor of e.
    """

    moments: Tensor
    mean: Tensor
    student_map: Tensor
    teacher_map: Tensor
    correlation: Tensor

    def __init__(self, student: int, teacher: int, horizon: int) -> None:
        super().__init__()
        self.student, self.horizon = student, horizon
        size, components = student + teacher, min(student, teacher, COMPONENTS)
        # Of the features of both networks and a constant 1.
        self.register_buffer("moments", torch.zeros(FOLDS, size + 1, size + 1))
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("student_map", torch.zeros(FOLDS, student, components))
        self.register_buffer("teacher_map", torch.zeros(FOLDS, teacher, components))
        self.register_buffer("correlation", torch.zeros(FOLDS, components))

    def learn(self, s: Tensor, t: Tensor, index: Tensor) -> None:
        """Update the moments.

        Args:
            s: The student's features, `[B, D_S]`.
            t: The teacher's features, `[B, D_T]`.
            index: Index of the samples, `[B]`. It determines their folds.
        """
        x = torch.cat([s, t, s.new_ones(len(s), 1)], 1)
        keep = math.exp(-len(s) / self.horizon)
        for fold in range(FOLDS):
            rows = x * (index % FOLDS == fold)[:, None]
            self.moments[fold].mul_(keep).addmm_(rows.T, x)

    def fit(self) -> None:
        """Compute the canonical components from the moments, on the CPU in float64."""
        moments = self.moments.double().cpu()
        total, held = moments.sum(0), moments.roll(-1, 0)
        mean, whole, _ = _covariance(total)
        _, fitted, _ = _covariance(total - moments - held)
        _, other, count = _covariance(held)
        d = self.student
        student, teacher = (torch.linalg.cholesky(_ridge(part)) for part in (fitted[:, :d, :d], fitted[:, d:, d:]))
        cross = torch.linalg.solve_triangular(student, fitted[:, :d, d:], upper=False)
        cross = torch.linalg.solve_triangular(teacher, cross.mT, upper=False).mT
        left, _, right = torch.linalg.svd(cross, full_matrices=False)
        a, b = left[..., : self.correlation.shape[1]], right.mT[..., : self.correlation.shape[1]]
        a = _unit_variance(torch.linalg.solve_triangular(student.mT, a, upper=True), whole[:d, :d])
        b = _unit_variance(torch.linalg.solve_triangular(teacher.mT, b, upper=True), whole[d:, d:])
        # By chance, the correlation of independent samples has this standard deviation.
        correlation = (a * (other[:, :d, d:] @ b)).sum(1) - count[:, None].clamp(min=1).rsqrt()
        found = {"mean": mean, "student_map": a, "teacher_map": b, "correlation": correlation.clamp(0, LARGEST)}
        for name, value in found.items():
            self.get_buffer(name).copy_(value)

    def costs(self, s: Tensor, t: Tensor, index: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the negative log-likelihood ratio of pairs, up to a constant per sample.

        Args:
            s: The student's features, `[B, D_S]`.
            t: The teacher's features, `[B, D_T]`.
            index: Index of the samples, `[B]`.
            others: Other features of the teacher, `[O, D_T]`.

        Returns:
            The cost of each pair `[B]`, and of each sample with each of the others `[B, O]`.
        """
        fold, rows = index % FOLDS, torch.arange(len(index), device=index.device)
        mean_s, mean_t = self.mean.split([self.student, len(self.mean) - self.student])
        u = ((s - mean_s) @ self.student_map)[fold, rows]  # [B, K]
        v = ((t - mean_t) @ self.teacher_map)[fold, rows]
        v_others = (others - mean_t) @ self.teacher_map  # [F, O, K]
        product = self.correlation / (1 - self.correlation.square())
        square = self.correlation * product / 2
        own = (square[fold] * (u.square() + v.square()) - product[fold] * u * v).sum(1)
        anchors = product[fold] * u
        with_others = (square[fold] * u.square()).sum(1, keepdim=True)
        with_others = with_others + (v_others.square() @ square[..., None])[..., 0][fold]
        for number, v_other in enumerate(v_others):
            with_others = with_others - (anchors * (fold == number)[:, None]) @ v_other.T
        return own, with_others


def _covariance(moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean `[..., D]`, covariance `[..., D, D]` and number of samples `[...]` from moments `[..., D + 1, D + 1]`."""
    count = moments[..., -1, -1]
    moments = moments / count[..., None, None].clamp(min=1)
    mean = moments[..., -1, :-1]
    return mean, moments[..., :-1, :-1] - mean[..., :, None] * mean[..., None, :], count


def _ridge(covariance: Tensor) -> Tensor:
    ridge = RIDGE * covariance.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=LEAST_VARIANCE)
    return covariance + ridge[..., None, None] * torch.eye(covariance.shape[-1], dtype=covariance.dtype)


def _unit_variance(directions: Tensor, covariance: Tensor) -> Tensor:
    """Scale directions `[F, D, K]` so that projections of features with this covariance have variance 1."""
    return directions / (directions * (covariance @ directions)).sum(1, keepdim=True).clamp(min=1e-9).sqrt()
