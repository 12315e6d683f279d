"""Relational knowledge distillation (Park et al. 2019, arXiv 1904.05068)."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn import functional as F

from losses.base import Batch, Dims, Features, Loss, full_precision
from losses.gather import gather


class RKD(Loss):
    """`distance * mean_ij[h(d_ij^S - d_ij^T)] + angle * mean_ijk[h(a_ijk^S - a_ijk^T)]`, h smooth L1 (Huber).

    d are distances within the global batch of N samples over their mean, a the cosines of the angle at i between j
    and k. Needs `pooled` of any two sizes, no labels and no projection; published with the weight 1. Memory and time
    grow with N^3: at N = 256 the angles of one network take 64 MiB.
    """

    def __init__(
        self,
        student: Dims,
        teacher: Dims,
        *,
        distance: Annotated[float, Ge(0)] = 25.0,
        angle: Annotated[float, Ge(0)] = 50.0,
    ) -> None:
        super().__init__()
        self.distance, self.angle = distance, angle

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        s, t = gather(full_precision(student.pooled)), gather(full_precision(teacher.pooled))
        with torch.autocast(s.device.type, enabled=False):
            distance_s, angle_s = _relations(s)
            with torch.no_grad():
                distance_t, angle_t = _relations(t)
        distance, angle = F.smooth_l1_loss(distance_s, distance_t), F.smooth_l1_loss(angle_s, angle_t)
        return self.distance * distance + self.angle * angle


def _relations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Distances `[N, N]` over their mean, and cosines of angles `[N, N, N]`, the first index at the vertex."""
    difference = x[None] - x[:, None]  # [N, N, D]
    distance = difference.norm(dim=2)
    mean = distance.sum() / (distance > 0).sum().clamp(min=1)
    # A sample has no direction to its duplicates: over an infinite distance, unit vector and gradient are 0, not NaN.
    unit = difference / distance.masked_fill(distance <= 1e-6 * mean, torch.inf)[:, :, None]
    return distance / mean.clamp(min=1e-12), unit @ unit.transpose(1, 2)
