"""Feature regression by direction: the plain answer that any contrast between samples has to beat."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losses.base import Batch, Dims, Features, Loss, full_precision
from losses.diagnostics import pair_metrics
from losses.gather import gather
from losses.standardise import Standardise


class Cosine(Loss):
    """`1 - cos(W s + b, t)` of each sample's `pooled`, the mean over the batch, in [0, 2]; needs no labels.

    Hints of Romero et al. 2015 (arXiv 1412.6550) at the last layer, without their scale. Only the student is
    projected, to the teacher's size, so the target cannot drift. standardise: the teacher's features by their running
    mean and deviation (`losses.standardise`); raw, their common mean and largest dimensions fill most of the cosine.
    """

    def __init__(self, student: Dims, teacher: Dims, *, standardise: bool = True) -> None:
        super().__init__()
        self.projection = nn.Linear(student.pooled, teacher.pooled)
        self.standardise = Standardise(teacher.pooled) if standardise else None

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        s, t = full_precision(student.pooled), full_precision(teacher.pooled)
        if self.standardise is not None:
            if self.training:
                self.standardise.update(gather(t))
            t = self.standardise(t)
        with torch.autocast(s.device.type, enabled=False):
            s = self.projection(s)
        self._last = s.detach(), t.detach()
        return (1 - F.cosine_similarity(s, t, dim=1)).mean()

    def metrics(self) -> dict[str, Tensor]:
        if not self._last:
            return {}
        s, t = self._last
        return pair_metrics(gather(s), gather(t))
