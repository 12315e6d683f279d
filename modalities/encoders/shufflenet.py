"""ShuffleNet V1 (Zhang et al. 2018, arXiv 1707.01083) and V2 (Ma et al. 2018, arXiv 1807.11164) for CIFAR."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

from modalities.encoders.base import Preprocessing
from modalities.encoders.staged import Staged, conv_norm, conv_norm_relu

STEM, BLOCKS, GROUPS = 24, (4, 8, 4), 3
V1_WIDTHS, V2_WIDTHS, V2_TOP = (240, 480, 960), (116, 232, 464), 1024


class ShuffleV1(Staged):
    """A 1x1 stem and three stages of grouped blocks (3 groups). Each stage halves the resolution.

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
        widths = (STEM, *V1_WIDTHS)
        stages = [
            nn.Sequential(GroupedDown(fan_in, fan_out), *(Grouped(fan_out) for _ in range(count - 1)))
            for fan_in, fan_out, count in zip(widths, V1_WIDTHS, BLOCKS, strict=False)
        ]
        stem = conv_norm_relu(channels, STEM, kernel=1)
        super().__init__(Preprocessing.of(channels, size, mean, std), stem, stages, widths)


class ShuffleV2(Staged):
    """A 1x1 stem and three stages of split blocks. Each stage halves the resolution; `pooled` has 1,024 dimensions.

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
        widths = (STEM, *V2_WIDTHS)
        stages = [
            nn.Sequential(SplitDown(fan_in, fan_out), *(Split(fan_out) for _ in range(count - 1)))
            for fan_in, fan_out, count in zip(widths, V2_WIDTHS, BLOCKS, strict=False)
        ]
        stem, top = conv_norm_relu(channels, STEM, kernel=1), conv_norm_relu(widths[-1], V2_TOP, kernel=1)
        super().__init__(Preprocessing.of(channels, size, mean, std), stem, stages, widths, top, V2_TOP)


class Grouped(nn.Module):
    """Grouped 1x1, channel shuffle, depthwise 3x3, grouped 1x1, with a residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = grouped(width, width, width // 4, stride=1, groups=GROUPS)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + x)


class GroupedDown(nn.Module):
    """The same block with stride 2; the average-pooled input is concatenated instead of added."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        new = fan_out - fan_in
        groups = 1 if fan_in == STEM else GROUPS  # the stem has too few channels for groups
        self.body = grouped(fan_in, new, new // 4, stride=2, groups=groups)
        self.shortcut = nn.AvgPool2d(3, stride=2, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(torch.cat([self.body(x), self.shortcut(x)], 1))


class Split(nn.Module):
    """Half of the channels stay unchanged, the other half is convolved; then all are shuffled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = split(width // 2, width // 2, stride=1)
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        kept, convolved = x.chunk(2, 1)
        return self.shuffle(torch.cat([kept, self.body(convolved)], 1))


class SplitDown(nn.Module):
    """Two branches of stride 2 that both read all channels."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.left = nn.Sequential(
            conv_norm(fan_in, fan_in, kernel=3, stride=2, groups=fan_in), conv_norm_relu(fan_in, fan_out // 2, kernel=1)
        )
        self.right = split(fan_in, fan_out // 2, stride=2)
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.shuffle(torch.cat([self.left(x), self.right(x)], 1))


def grouped(fan_in: int, fan_out: int, middle: int, stride: int, groups: int) -> nn.Sequential:
    """The residual branch of V1: `[B, fan_in, H, W]` to `[B, fan_out, H / stride, W / stride]`."""
    return nn.Sequential(
        conv_norm_relu(fan_in, middle, kernel=1, groups=groups),
        nn.ChannelShuffle(groups),
        conv_norm_relu(middle, middle, kernel=3, stride=stride, groups=middle),
        conv_norm(middle, fan_out, kernel=1, groups=GROUPS),
    )


def split(fan_in: int, middle: int, stride: int) -> nn.Sequential:
    """The convolved branch of V2: `[B, fan_in, H, W]` to `[B, middle, H / stride, W / stride]`."""
    return nn.Sequential(
        conv_norm_relu(fan_in, middle, kernel=1),
        conv_norm(middle, middle, kernel=3, stride=stride, groups=middle),
        conv_norm_relu(middle, middle, kernel=1),
    )
