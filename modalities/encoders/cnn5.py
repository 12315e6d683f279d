"""A small image encoder: five convolutions, 0.28 M parameters."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt
from torch import Tensor, nn

from losses import Features
from modalities.encoders.base import Encoder, Preprocessing


class CNN5(Encoder):
    """Five 3x3 convolutions with BatchNorm and ReLU; their outputs are the maps, and the mean of the last is `pooled`.

    Args:
        channels: Channels of the input.
        width: Channels of the first layer; the five layers have width x (1, 2, 2, 4, 4) channels. With 32, the network
            has 0.28 M parameters.
        size: Input size in pixels, at least 16. The strides 2, 2, 2, 1, 1 reduce it to size / 8, e.g. from 64 to 8.
        mean: Mean of each channel of the encoder's input ([0, 1] for uint8 images); None means 0.
        std: Standard deviation of each channel; None means 1.
    """

    def __init__(
        self,
        channels: int,
        *,
        width: Annotated[int, Gt(0)] = 32,
        size: Annotated[int, Ge(16)] = 64,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__(Preprocessing.of(channels, size, mean, std))
        widths = [width, 2 * width, 2 * width, 4 * width, 4 * width]
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(fan_in, fan_out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(fan_out), nn.ReLU()
            )
            for fan_in, fan_out, stride in zip([channels, *widths], widths, (2, 2, 2, 1, 1), strict=False)
        )
        self.dim, self.map_channels = widths[-1], tuple(widths)

    def forward(self, x: Tensor) -> Features:
        x = self.normalise(x)
        maps = []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return Features(x.mean((2, 3)), maps)
