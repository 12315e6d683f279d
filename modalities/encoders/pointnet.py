"""A small network for point sets (Qi et al. 2017, arXiv 1612.00593): a shared MLP followed by max pooling."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from losses import Features
from modalities.encoders.base import Encoder, Preprocessing


class PointNet(Encoder):
    """Three linear layers with LayerNorm and ReLU, shared by all points; `pooled` is the maximum over the points.

    Args:
        channels: Coordinates per point.
        width: Width of the first layer; the three layers have the widths width x (1, 2, 4).
        size: Side in pixels of the depth map from which the points are sampled. The modality `points` ignores it.
    """

    reads_pictures: ClassVar[bool] = False

    def __init__(self, channels: int, *, width: Annotated[int, Gt(0)] = 64, size: Annotated[int, Ge(16)] = 64) -> None:
        super().__init__(Preprocessing.of(channels, size))
        widths = [width, 2 * width, 4 * width]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(fan_in, fan_out), nn.LayerNorm(fan_out), nn.ReLU())
            for fan_in, fan_out in zip([channels, *widths], widths, strict=False)
        )
        self.dim, self.map_channels = widths[-1], tuple(widths)

    def forward(self, x: dict[str, Tensor]) -> Features:
        """Encode `points [B, N, 3]` with `mask [B, N]`, True for real points (at least one each); maps `[B, N, C]`."""
        out, mask, maps = x["points"], x["mask"][..., None], []
        for layer in self.layers:
            out = layer(out)
            maps.append(out * mask)
        return Features(out.masked_fill(~mask, -torch.inf).amax(1), maps)
