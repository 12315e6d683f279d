"""WCoRD whose two terms pull equally hard, whatever their scale: fixed weights are held against it in the study."""

from __future__ import annotations

import torch
from torch import Tensor

from losses import Dims, Features, WCoRD
from losses.base import Batch
from losses.gather import gather

MOMENTUM = 0.9


class GradientNormWCoRD(WCoRD):
    """`global_weight` times the global term, and as much gradient from the local one.

    The gradients are those with respect to the student's pooled features `[B, D]`, their norms' ratio a running mean
    over steps, in the manner of GradNorm (Chen et al. 2018, arXiv 1711.02257) without its task rates.
    """

    ratio: Tensor

    def __init__(self, student: Dims, teacher: Dims, *, global_weight: float = 0.5, relational: float = 0.15) -> None:
        super().__init__(student, teacher, global_weight=global_weight, relational=relational)
        self.register_buffer("ratio", torch.zeros(()))

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        dual = self.global_contrast(student, teacher, batch)
        primal = self.local_transport(student, teacher, batch)
        if self.training:
            ratio = _norm(dual, student.pooled) / _norm(primal, student.pooled)
            self.ratio = torch.where(self.ratio > 0, torch.lerp(ratio, self.ratio, MOMENTUM), ratio)
        self._terms = {"global": dual.detach(), "local": primal.detach(), "local_weight": self.ratio}
        return self.global_weight * (dual + self.ratio * primal)


def _norm(term: Tensor, features: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(term, features, retain_graph=True)
    return gather(gradient).norm().clamp(min=torch.finfo(gradient.dtype).tiny)
