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
    """Attention transfer: match the spatial attention maps of the networks.

    `loss = sum_l mean((a(m_S^l) - a(m_T^l))^2)`, where `a(m)` is the mean square over channels, flattened and
    L2-normalised per sample. The mean is over samples and positions. Requires feature maps, but no labels. If the
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
        paired_channels("AT", student, teacher, first)
        self.first = first

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        pairs = [same_size(*pair) for pair in paired_maps(student, teacher, self.first)]
        return torch.stack([F.mse_loss(_attention(s), _attention(t)) for s, t in pairs]).sum()


def _attention(x: Tensor) -> Tensor:
    """Spatial attention of a map, `[B, C, H, W] -> [B, H W]`."""
    return F.normalize(x.square().mean(1).flatten(1), dim=1)
