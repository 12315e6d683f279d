"""Sigmoid loss for pairs (Zhai et al. 2023, arXiv 2303.15343)."""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.nn import functional as F

from losses.base import Batch, Dims, Features, Loss, LossOutput, full_precision
from losses.critic import CosineProjection
from losses.diagnostics import pair_metrics
from losses.gather import gather
from losses.temperature import bounded_temperature


class SigLIP(Loss):
    """SigLIP: binary classification of every combination in the global batch as matching or not.

    `loss = -1/N sum_ij log sigmoid(z_ij (scale * <s_i, t_j> + bias))`, z = 1 for pairs and -1 otherwise. There is no
    softmax over the N samples. Requires no labels.

    Args:
        dim: Size of the L2-normalised projections.
        scale: Initial inverse temperature, which is learnt within [1, 100].
        bias: Initial value of the learnt bias. With -10, nearly all combinations are initially predicted as negative.
    """

    never_decayed = ("log_temperature", "bias")

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

    def forward(self, student: Features, teacher: Features, batch: Batch) -> LossOutput:
        s = gather(self.student_projection(full_precision(student.pooled)))
        t = gather(self.teacher_projection(full_precision(teacher.pooled)))
        with torch.autocast(s.device.type, enabled=False):
            # [N, N], the pairs on the diagonal
            logits = s @ t.T / bounded_temperature(self.log_temperature) + self.bias
        sign = 2 * torch.eye(len(s), device=s.device, dtype=s.dtype) - 1
        loss = -F.logsigmoid(sign * logits).sum() / len(s)
        return LossOutput(loss, partial(self._metrics, s.detach(), t.detach()))

    def _metrics(self, s: Tensor, t: Tensor) -> dict[str, Tensor]:
        learnt = {"scale": (-self.log_temperature.detach()).exp(), "bias": self.bias.detach()}
        return pair_metrics(s, t) | learnt | {"negatives": s.new_tensor(len(s) - 1)}
