"""Wide ResNets (Zagoruyko and Komodakis 2016, arXiv 1605.07146)."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt
from torch import Tensor, nn

from modalities.encoders.base import Preprocessing
from modalities.encoders.staged import Staged, stack


class WideResNet(Staged):
    """A 3x3 stem and three stages of pre-activation blocks. Maps are taken before the activation, `pooled` after it.

    Args:
        channels: Channels of the input.
        depth: Number of layers, 6n + 4 (16, 28, 40), with n blocks per stage.
        widen: Widening factor: the stages have 16, 32 and 64 times this number of channels.
        size: Input size in pixels, at least 16.
        mean: Mean of each channel of the encoder's input ([0, 1] for uint8 images); None means 0.
        std: Standard deviation of each channel; None means 1.

    Raises:
        ValueError: The depth is not 6n + 4.
    """

    def __init__(
        self,
        channels: int,
        *,
        depth: Annotated[int, Ge(10)] = 16,
        widen: Annotated[int, Gt(0)] = 2,
        size: Annotated[int, Ge(16)] = 32,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        if depth < 10 or depth % 6 != 4:
            below = max(10, depth - (depth - 4) % 6)
            raise ValueError(f"depth: {depth} is not 6n + 4; the nearest depths are {below} and {below + 6}")
        widths = [16, 16 * widen, 32 * widen, 64 * widen]
        stem = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        stages = stack(Block, widths, [(depth - 4) // 6] * 3, strides=(1, 2, 2))
        top = nn.Sequential(nn.BatchNorm2d(widths[-1]), nn.ReLU())
        super().__init__(Preprocessing.of(channels, size, mean, std), stem, stages, widths, top)
        self.initialise()


class Block(nn.Module):
    """BatchNorm, ReLU and 3x3 convolution, twice. A shortcut that changes the shape starts after the first ReLU."""

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.activate = nn.Sequential(nn.BatchNorm2d(fan_in), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(fan_in, fan_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(fan_out),
            nn.ReLU(),
            nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False),
        )
        same = fan_in == fan_out and stride == 1
        self.shortcut = None if same else nn.Conv2d(fan_in, fan_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.activate(x)
        return self.body(activated) + (x if self.shortcut is None else self.shortcut(activated))
