"""Feature regression by cosine similarity: the baseline for all contrastive losses."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losses.base import Batch, Dims, Features, Loss, LossOutput, full_precision
from losses.diagnostics import pair_metrics
from losses.gather import gather
from losses.standardise import Standardise


class Cosine(Loss):
    """Feature regression: the cosine distance between projected student and teacher features.

    `loss = 1 - cos(W s + b, t)` of `pooled`, averaged over the batch, in [0, 2]. Requires no labels. This is the hint
    loss of Romero et al. 2015 (arXiv 1412.6550) at the last layer, without the scale. Only the student is projected (to
    the size of the teacher), so the target cannot drift.

    Args:
        standardise: Standardise the teacher's features by their running mean and standard deviation
            (`losses.standardise`). Otherwise, their common mean and largest dimensions dominate the cosine.
    """

    def __init__(self, student: Dims, teacher: Dims, *, standardise: bool = True) -> None:
        super().__init__()
        self.projection = nn.Linear(student.pooled, teacher.pooled)
        self.standardise = Standardise(teacher.pooled) if standardise else None
        self.per_sample = not standardise

    def forward(self, student: Features, teacher: Features, batch: Batch) -> LossOutput:
        s, t = full_precision(student.pooled), full_precision(teacher.pooled)
        if self.standardise is not None:
            if self.training:
                self.standardise.update(gather(t))
            t = self.standardise(t)
        with torch.autocast(s.device.type, enabled=False):
            s = self.projection(s)
        return LossOutput((1 - F.cosine_similarity(s, t, dim=1)).mean(), partial(_metrics, s.detach(), t.detach()))


def _metrics(s: Tensor, t: Tensor) -> dict[str, Tensor]:
    return pair_metrics(gather(s), gather(t))
