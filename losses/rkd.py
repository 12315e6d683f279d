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
    """Relational knowledge distillation: match distances and angles between samples.

    `loss = distance * mean_ij[h(d_ij^S - d_ij^T)] + angle * mean_ijk[h(a_ijk^S - a_ijk^T)]`, where h is smooth L1
    (Huber), d are the distances within the global batch of N samples, divided by their mean, and a are the cosines of
    the angles at i between j and k. The `pooled` features of the networks may differ in size. Requires neither labels
    nor a projection. Published with weight 1. Memory and time grow with N^3: for N = 256, the angles of one network
    take 64 MiB.

    Args:
        distance: Weight of the distance term.
        angle: Weight of the angle term.
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
    """Distances `[N, N]` divided by their mean, and cosines of angles `[N, N, N]`, with the vertex as first index."""
    difference = x[None] - x[:, None]  # [N, N, D]
    distance = difference.norm(dim=2)
    mean = distance.sum() / (distance > 0).sum().clamp(min=1)
    # The direction to a duplicate is undefined. An infinite distance makes unit vector and gradient 0 instead of NaN.
    unit = difference / distance.masked_fill(distance <= 1e-6 * mean, torch.inf)[:, :, None]
    return distance / mean.clamp(min=1e-12), unit @ unit.transpose(1, 2)
