"""A segmentation head: predicts class scores for every pixel from all feature maps of an encoder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from losses.maps import as_grid

WIDEST = 128
"""Maximum number of channels of the fused maps. Below it, they have half as many channels as the deepest map."""


class Decoder(nn.Module):
    """Fuse all maps: 1x1 convolutions to one width, their sum at the finest resolution, a 3x3 and a 1x1 convolution.

    This is the head of SegFormer (Xie et al. 2021, arXiv 2105.15203) with an additional 3x3 convolution, for encoders
    whose deep maps lack context from neighbouring positions.

    Args:
        channels: Channels of each map.
        classes: Number of classes.
        size: Height and width of the output.
    """

    def __init__(self, channels: Sequence[int], classes: int, size: int) -> None:
        super().__init__()
        self.size = size
        width = min(max(channels[-1] // 2, 1), WIDEST)
        self.laterals = nn.ModuleList(nn.Conv2d(own, width, 1, bias=False) for own in channels)
        self.fuse = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, classes, 1),
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Compute logits.

        Args:
            maps: `[B, C, H, W]` (or tokens `[B, N, C]`), of any sizes.

        Returns:
            `[B, classes, size, size]`.
        """
        grids = [as_grid(x) for x in maps]
        finest = max((x.shape[2:] for x in grids), key=lambda shape: shape[0] * shape[1])
        laterals = [resized(own(x), finest) for own, x in zip(self.laterals, grids, strict=True)]
        joined = laterals[0]
        for lateral in laterals[1:]:
            joined = joined + lateral
        return resized(self.fuse(joined), (self.size, self.size))


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize bilinearly.

    Args:
        x: `[B, C, H, W]`. Returned unchanged if it already has this size, even if it is not a map.
        size: Height and width.
    """
    return x if tuple(x.shape[2:]) == tuple(size) else F.interpolate(x, tuple(size), mode="bilinear")
