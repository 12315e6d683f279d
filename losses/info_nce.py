"""InfoNCE between teacher and student (van den Oord et al. 2018, arXiv 1807.03748; symmetric as in CLIP)."""

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


class InfoNCE(Loss):
    """InfoNCE: identify the matching pair among the samples of the global batch, in both directions.

    Args:
        dim: Size of the L2-normalised projections.
        temperature: Initial temperature, which is learnt within [0.01, 1].
    """

    never_decayed = ("log_temperature",)

    def __init__(
        self,
        student: Dims,
        teacher: Dims,
        *,
        dim: Annotated[int, Gt(0)] = 128,
        temperature: Annotated[float, Ge(0.01), Le(1)] = 0.07,
    ) -> None:
        super().__init__()
        self.student_projection = CosineProjection(student.pooled, dim)
        self.teacher_projection = CosineProjection(teacher.pooled, dim)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    def forward(self, student: Features, teacher: Features, batch: Batch) -> LossOutput:
        s = gather(self.student_projection(full_precision(student.pooled)))
        t = gather(self.teacher_projection(full_precision(teacher.pooled)))
        with torch.autocast(s.device.type, enabled=False):
            logits = s @ t.T / bounded_temperature(self.log_temperature)
            target = torch.arange(len(s), device=s.device)
            loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        return LossOutput(loss, partial(self._metrics, s.detach(), t.detach()))

    def _metrics(self, s: Tensor, t: Tensor) -> dict[str, Tensor]:
        own = {"temperature": self.log_temperature.detach().exp(), "negatives": s.new_tensor(len(s) - 1)}
        return pair_metrics(s, t) | own
