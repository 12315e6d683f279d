"""WCoRD with gradient-norm balancing of its two terms; the study compares it with fixed weights."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from losses import Dims, Features, LossOutput, WCoRD
from losses.base import Batch
from losses.gather import gather
from losses.wcord import metrics_of_terms

MOMENTUM = 0.9


class GradientNormWCoRD(WCoRD):
    """`global_weight` times the global term, and a local term scaled to the same gradient norm, on raw features.

    Gradients are taken with respect to the student's pooled features `[B, D]`. The ratio of their norms is averaged
    over steps, as in GradNorm (Chen et al. 2018, arXiv 1711.02257) without its task rates.
    """

    ratio: Tensor

    def __init__(self, student: Dims, teacher: Dims, *, global_weight: float = 0.5, relational: float = 0.15) -> None:
        super().__init__(student, teacher, global_weight=global_weight, relational=relational)
        self.register_buffer("ratio", torch.zeros(()))

    def forward(self, student: Features, teacher: Features, batch: Batch) -> LossOutput:
        dual = self.global_contrast.with_metrics(student, teacher, batch)
        primal = self.local_transport.with_metrics(student, teacher, batch)
        if self.training:
            ratio = _norm(dual.loss, student.pooled) / _norm(primal.loss, student.pooled)
            self.ratio = torch.where(self.ratio > 0, torch.lerp(ratio, self.ratio, MOMENTUM), ratio)
        values = {"global": dual.loss.detach(), "local": primal.loss.detach()}
        return LossOutput(
            self.global_weight * (dual.loss + self.ratio * primal.loss),
            partial(metrics_of_terms, values, [dual.metrics, primal.metrics]),
        )


def _norm(term: Tensor, features: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(term, features, retain_graph=True)
    return gather(gradient).norm().clamp(min=torch.finfo(gradient.dtype).tiny)
