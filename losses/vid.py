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
    """Variational information distillation: negative log likelihood of the teacher's features given the student's.

    `loss = sum_l mean[(t_l - mu_l(s_l))^2 / v_l + log v_l] / 2`, up to a constant. mu_l is a trained regressor (three
    1x1 convolutions with ReLU), and v_l a trained variance per teacher channel. l runs over pairs of maps. The larger
    map of a pair is pooled to the smaller size; if the numbers of tokens differ, tokens are averaged. If the networks
    have different numbers of maps, the deepest ones are paired. If one has no maps, `pooled` is used instead. Requires
    no labels. Published with weight 1. The value becomes negative once the student predicts the teacher well.

    Args:
        first: Index of the first pair of maps to compare. The paper uses 1, which skips the stem of a ResNet.

    Raises:
        ValueError: `first` leaves no pairs.
    """

    needs_maps: ClassVar[bool] = True
    per_sample = True

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
    """`-log N(t; mu(s), v)` of `[..., C]`, averaged over all entries. A linear layer acts as a 1x1 convolution."""

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        self.regressor = nn.Sequential(
            nn.Linear(student, teacher, bias=False),
            nn.ReLU(),
            nn.Linear(teacher, teacher, bias=False),
            nn.ReLU(),
            nn.Linear(teacher, teacher, bias=False),
        )
        start = math.log(math.expm1(START_VARIANCE - LEAST_VARIANCE))  # its softplus is START_VARIANCE
        self.softplus_variance = nn.Parameter(torch.full((teacher,), start))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        with torch.autocast(student.device.type, enabled=False):
            mean = self.regressor(full_precision(student))
            variance = F.softplus(self.softplus_variance) + LEAST_VARIANCE
            return ((full_precision(teacher) - mean).square() / variance + variance.log()).mean() / 2


def _same_positions(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Convert a pair of maps to `[B, N, C]` with the same N."""
    s, t = full_precision(s), full_precision(t)  # before averaging
    if s.ndim == t.ndim == 4 and s.shape[2:] != t.shape[2:]:
        size = min(s.shape[2], t.shape[2]), min(s.shape[3], t.shape[3])
        s, t = F.adaptive_avg_pool2d(s, size), F.adaptive_avg_pool2d(t, size)
    s, t = (x.flatten(2).transpose(1, 2) if x.ndim == 4 else x for x in (s, t))
    if s.shape[1] != t.shape[1]:
        s, t = s.mean(1, keepdim=True), t.mean(1, keepdim=True)
    return s, t
