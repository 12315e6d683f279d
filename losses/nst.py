"""Neuron selectivity transfer (Huang and Wang 2017, arXiv 1707.01219) with its polynomial kernel."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn import functional as F

from losses.base import Batch, Dims, Features, Loss
from losses.maps import paired_channels, paired_maps, same_size


class NST(Loss):
    """Neuron selectivity transfer: match the distributions of channel activations.

    `loss = sum_l MMD^2(channels of m_S^l, channels of m_T^l)` with kernel `<x, y>^2`, averaged over samples. Each
    channel is represented by the L2-normalised vector of its values over positions. Requires feature maps. If the
    networks have different numbers of maps, the deepest ones are paired. If sizes differ, the larger map is
    average-pooled.

    Args:
        first: Index of the first pair of maps to compare. The paper uses 1, which skips the stem of a ResNet.

    Raises:
        ValueError: A network has no maps, or `first` leaves none.
    """

    needs_maps: ClassVar[bool] = True
    per_sample = True

    def __init__(self, student: Dims, teacher: Dims, *, first: Annotated[int, Ge(0)] = 0) -> None:
        super().__init__()
        paired_channels("NST", student, teacher, first)
        self.first = first

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        return torch.stack(
            [_discrepancy(*same_size(*pair)) for pair in paired_maps(student, teacher, self.first)]
        ).sum()


def _discrepancy(student: Tensor, teacher: Tensor) -> Tensor:
    s, t = (F.normalize(x.flatten(2), dim=2) for x in (student, teacher))  # [B, C, H W]
    with torch.autocast(s.device.type, enabled=False):
        if s.shape[2] <= max(s.shape[1], t.shape[1]):
            # <x, y>^2 = <xx', yy'>: this gives the same value with matrices over positions, which are smaller here.
            difference = _second_moment(s) - _second_moment(t)
            return difference.square().sum((1, 2)).mean()
        return _mean_kernel(s, s) + _mean_kernel(t, t) - 2 * _mean_kernel(s, t)


def _second_moment(x: Tensor) -> Tensor:
    return x.mT @ x / x.shape[1]


def _mean_kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.mT).square().mean()
