"""VGG with BatchNorm (Simonyan and Zisserman 2015, arXiv 1409.1556), with one linear layer instead of three."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge
from torch import nn

from modalities.encoders.base import Preprocessing
from modalities.encoders.staged import Staged

CONVOLUTIONS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)


class VGG(Staged):
    """Five stages of 3x3 convolutions; max pooling before stages two to four reduces the input to size / 8.

    Args:
        channels: Channels of the input.
        depth: Number of convolutions plus the three linear layers of the original.
        size: Input size in pixels, at least 16.
        mean: Mean of each channel of the encoder's input ([0, 1] for uint8 images); None means 0.
        std: Standard deviation of each channel; None means 1.
    """

    def __init__(
        self,
        channels: int,
        *,
        depth: Literal[8, 11, 13, 16, 19] = 8,
        size: Annotated[int, Ge(16)] = 32,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        stem, *stages = (
            convolutions(fan_in, fan_out, count)
            for fan_in, fan_out, count in zip((channels, *WIDTHS), WIDTHS, CONVOLUTIONS[depth], strict=False)
        )
        for stage in stages[:3]:
            stage.insert(0, nn.MaxPool2d(2))
        super().__init__(Preprocessing.of(channels, size, mean, std), stem, stages, WIDTHS)
        self.initialise()


def convolutions(fan_in: int, fan_out: int, count: int) -> nn.Sequential:
    """`count` 3x3 convolutions with bias, BatchNorm and ReLU."""
    layers = nn.Sequential()
    for place in range(count):
        conv = nn.Conv2d(fan_in if place == 0 else fan_out, fan_out, 3, padding=1)
        layers.extend([conv, nn.BatchNorm2d(fan_out), nn.ReLU()])
    return layers
