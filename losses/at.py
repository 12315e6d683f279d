"""Attention transfer (Zagoruyko and Komodakis 2017, arXiv 1612.03928)."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn import functional as F

from losses.base import Batch, Dims, Features, Loss
from losses.maps import paired_channels, paired_maps, same_size


class AT(Loss):
    """`sum_l mean((a(m_S^l) - a(m_T^l))^2)`, `a(m)` the L2-normalised map of the channels' mean square; needs maps.

    The mean goes over samples and positions. If the sides differ in their number of maps, the last ones are paired; if
    in size, the larger map is average-pooled. first: of the pairs that is compared; published with 1, which leaves out
    the stem of a ResNet. Raises ValueError if a side has no maps, or not that many.
    """

    needs_maps: ClassVar[bool] = True

    def __init__(self, student: Dims, teacher: Dims, *, first: Annotated[int, Ge(0)] = 0) -> None:
        super().__init__()
        paired_channels("AT", student, teacher, first)
        self.first = first

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        pairs = [same_size(*pair) for pair in paired_maps(student, teacher, self.first)]
        return torch.stack([F.mse_loss(_attention(s), _attention(t)) for s, t in pairs]).sum()


def _attention(x: Tensor) -> Tensor:
    """`[B, C, H, W] -> [B, H W]`: where the map has its energy."""
    return F.normalize(x.square().mean(1).flatten(1), dim=1)
