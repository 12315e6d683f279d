"""Probabilistic knowledge transfer (Passalis and Tefas 2018, arXiv 1803.10837)."""

from __future__ import annotations

import torch
from torch import Tensor

from losses.base import Batch, Dims, Features, Loss, full_precision
from losses.gather import gather
from losses.unit import unit

EPSILON = 1e-7


class PKT(Loss):
    """Probabilistic knowledge transfer: match the probabilities that sample j is a neighbour of sample i.

    `loss = mean_ij[P_ij log(P_ij / Q_ij)]`, where P (teacher) and Q (student) are the row-normalised `(1 + cos(x_i,
    x_j)) / 2` of all `[N, N]` pairs of the global batch, including i = j. The `pooled` features of the networks may
    differ in size. Requires neither labels nor a projection. The mean over pairs makes the value small: the published
    weight is 30000.
    """

    def __init__(self, student: Dims, teacher: Dims) -> None:
        super().__init__()

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        s, t = gather(full_precision(student.pooled)), gather(full_precision(teacher.pooled))
        with torch.autocast(s.device.type, enabled=False):
            p, q = _neighbourhood(t), _neighbourhood(s)
        return (p * ((p + EPSILON) / (q + EPSILON)).log()).mean()


def _neighbourhood(x: Tensor) -> Tensor:
    direction = unit(x)
    similarity = (1 + direction @ direction.T) / 2
    return similarity / similarity.sum(1, keepdim=True)
