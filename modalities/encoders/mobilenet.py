"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381) as in CIFAR benchmarks: half width, ReLU instead of ReLU6."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge
from torch import Tensor, nn

from modalities.encoders.base import Preprocessing
from modalities.encoders.staged import Staged, conv_norm, conv_norm_relu

# For each stage, rows of blocks: expansion, channels, number of blocks, stride of the first block.
STAGES = (
    ((1, 8, 1, 1), (6, 12, 2, 1)),
    ((6, 16, 3, 2),),
    ((6, 32, 4, 2), (6, 48, 3, 1)),
    ((6, 80, 3, 2), (6, 160, 1, 1)),
)


class MobileNetV2(Staged):
    """A 3x3 stem with stride 2 and 17 inverted residual blocks in four stages; `pooled` has 1,280 dimensions.

    Args:
        channels: Channels of the input.
        size: Input size in pixels, at least 16.
        mean: Mean of each channel of the encoder's input ([0, 1] for uint8 images); None means 0.
        std: Standard deviation of each channel; None means 1.
    """

    def __init__(
        self,
        channels: int,
        *,
        size: Annotated[int, Ge(16)] = 32,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        widths, stages, fan_in = [16], [], 16
        for rows in STAGES:
            stage = nn.Sequential()
            for expansion, fan_out, count, stride in rows:
                for place in range(count):
                    stage.append(InvertedResidual(fan_in, fan_out, expansion, stride if place == 0 else 1))
                    fan_in = fan_out
            stages.append(stage)
            widths.append(fan_in)
        stem, top = conv_norm_relu(channels, 16, kernel=3, stride=2), conv_norm_relu(fan_in, 1280, kernel=1)
        super().__init__(Preprocessing.of(channels, size, mean, std), stem, stages, widths, top, 1280)
        self.initialise()


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1 projection; residual connection if the shape is unchanged."""

    def __init__(self, fan_in: int, fan_out: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = fan_in * expansion
        self.body = nn.Sequential(
            conv_norm_relu(fan_in, wide, kernel=1),
            conv_norm_relu(wide, wide, kernel=3, stride=stride, groups=wide),
            conv_norm(wide, fan_out, kernel=1),
        )
        self.same = fan_in == fan_out and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.same else self.body(x)
