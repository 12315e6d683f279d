"""Sigmoid loss for pairs (Zhai et al. 2023, arXiv 2303.15343)."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.nn import functional as F

from losses.base import Batch, Dims, Features, Loss, full_precision
from losses.critic import CosineProjection
from losses.diagnostics import pair_metrics
from losses.gather import gather
from losses.temperature import bounded_temperature


class SigLIP(Loss):
    """`-1/N sum_ij log sigmoid(z_ij (scale * <s_i, t_j> + bias))`, z = 1 for the pairs and -1 for all others.

    Every pair of the global batch of N samples is a decision of its own, without a softmax. dim: size of the
    L2-normalised projections of both `pooled`. scale: start value of the inverse temperature, learnt within [1, 100].
    bias: start value of the learnt bias; -10 expects nearly all pairs to be negative. Needs no labels.
    """

    def __init__(
        self,
        student: Dims,
        teacher: Dims,
        *,
        dim: Annotated[int, Gt(0)] = 128,
        scale: Annotated[float, Ge(1), Le(100)] = 10.0,
        bias: float = -10.0,
    ) -> None:
        super().__init__()
        self.student_projection = CosineProjection(student.pooled, dim)
        self.teacher_projection = CosineProjection(teacher.pooled, dim)
        self.log_temperature = nn.Parameter(torch.tensor(-math.log(scale)))
        self.bias = nn.Parameter(torch.tensor(float(bias)))

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        s = gather(self.student_projection(full_precision(student.pooled)))
        t = gather(self.teacher_projection(full_precision(teacher.pooled)))
        self._last = s.detach(), t.detach()
        with torch.autocast(s.device.type, enabled=False):
            # [N, N], the pairs on the diagonal
            logits = s @ t.T / bounded_temperature(self.log_temperature) + self.bias
        sign = 2 * torch.eye(len(s), device=s.device, dtype=s.dtype) - 1
        return -F.logsigmoid(sign * logits).sum() / len(s)

    def metrics(self) -> dict[str, Tensor]:
        if not self._last:
            return {}
        learnt = {"scale": (-self.log_temperature.detach()).exp(), "bias": self.bias.detach()}
        return pair_metrics(*self._last) | learnt
