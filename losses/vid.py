"""Variational information distillation (Ahn et al. 2019, arXiv 1904.05835)."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from losses.base import Batch, Dims, Features, Loss, full_precision
from losses.maps import pair_up, paired_channels

START_VARIANCE, LEAST_VARIANCE = 5.0, 1e-5


class VID(Loss):
    """`sum_l mean[(t_l - mu_l(s_l))^2 / v_l + log v_l] / 2`: -log likelihood of the teacher, up to a constant.

    mu_l is a trained regressor (three 1x1 convolutions with ReLU), v_l a trained variance for each teacher channel.
    The l are the maps, in pairs (the larger map of a pair is pooled to the smaller one; tokens that differ in number
    are averaged); if the sides differ in their number of maps, the last ones are paired; if one has none, it is
    `pooled` alone. first: of the pairs that is compared; published with 1, which leaves out the stem of a ResNet.
    Needs no labels; published with the weight 1. A likelihood: it falls below 0 once the student predicts the teacher
    well. Raises ValueError if there are not that many pairs.
    """

    needs_maps: ClassVar[bool] = True

    def __init__(self, student: Dims, teacher: Dims, *, first: Annotated[int, Ge(0)] = 0) -> None:
        super().__init__()
        self.on_maps, self.first = bool(student.maps and teacher.maps), first
        channels = [(student.pooled, teacher.pooled)]
        if self.on_maps or first > 0:
            channels = paired_channels("VID", student, teacher, first)
        self.likelihoods = nn.ModuleList(_Gaussian(s, t) for s, t in channels)

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        if self.on_maps:
            pairs = [_same_positions(s, t) for s, t in pair_up(student.maps, teacher.maps, self.first)]
        else:
            pairs = [(student.pooled, teacher.pooled)]
        terms = [minus_log(s, t) for minus_log, (s, t) in zip(self.likelihoods, pairs, strict=True)]
        return torch.stack(terms).sum()


class _Gaussian(nn.Module):
    """`-log N(t; mu(s), v)` of `[..., C]`, the mean over all entries. A linear layer is a 1x1 convolution here."""

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        self.regressor = nn.Sequential(
            nn.Linear(student, teacher, bias=False),
            nn.ReLU(),
            nn.Linear(teacher, teacher, bias=False),
            nn.ReLU(),
            nn.Linear(teacher, teacher, bias=False),
        )
        start = math.log(math.expm1(START_VARIANCE - LEAST_VARIANCE))  # softplus of it is the start
        self.softplus_variance = nn.Parameter(torch.full((teacher,), start))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        with torch.autocast(student.device.type, enabled=False):
            mean = self.regressor(full_precision(student))
            variance = F.softplus(self.softplus_variance) + LEAST_VARIANCE
            return ((full_precision(teacher) - mean).square() / variance + variance.log()).mean() / 2


def _same_positions(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """A pair of maps as `[B, N, C]` with one N."""
    s, t = full_precision(s), full_precision(t)  # before they are averaged
    if s.ndim == t.ndim == 4 and s.shape[2:] != t.shape[2:]:
        size = min(s.shape[2], t.shape[2]), min(s.shape[3], t.shape[3])
        s, t = F.adaptive_avg_pool2d(s, size), F.adaptive_avg_pool2d(t, size)
    s, t = (x.flatten(2).transpose(1, 2) if x.ndim == 4 else x for x in (s, t))
    if s.shape[1] != t.shape[1]:
        s, t = s.mean(1, keepdim=True), t.mean(1, keepdim=True)
    return s, t
