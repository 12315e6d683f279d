"""ResNets (He et al. 2016, arXiv 1512.03385): those of section 4.2 for CIFAR and of table 1 for ImageNet."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt
from torch import Tensor, nn

from modalities.encoders.base import Preprocessing
from modalities.encoders.staged import Staged, conv_norm, conv_norm_relu, stack


class ResNet(Staged):
    """A 3x3 stem and three stages of basic blocks with convolutional shortcuts: four maps.

    Args:
        channels: Channels of the input.
        depth: Number of layers, 6n + 2 (8, 14, 20, 32, 56, 110), with n blocks per stage.
        width: Channels of the first stage; the next two have 2 x and 4 x as many.
        stem_width: Channels of the stem; None means `width`.
        stem_stride: Stride of the stem. 2 or 4 is much faster for images larger than 32 pixels.
        size: Input size in pixels, at least 16.
        mean: Mean of each channel of the encoder's input ([0, 1] for uint8 images); None means 0.
        std: Standard deviation of each channel; None means 1.

    Raises:
        ValueError: The depth is not 6n + 2.
    """

    def __init__(
        self,
        channels: int,
        *,
        depth: Annotated[int, Ge(8)] = 20,
        width: Annotated[int, Gt(0)] = 16,
        stem_width: Annotated[int, Gt(0)] | None = None,
        stem_stride: Literal[1, 2, 4] = 1,
        size: Annotated[int, Ge(16)] = 32,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        if depth < 8 or depth % 6 != 2:
            below = max(8, depth - (depth - 2) % 6)
            raise ValueError(f"depth: {depth} is not 6n + 2; the nearest depths are {below} and {below + 6}")
        widths = [stem_width or width, width, 2 * width, 4 * width]
        # With stride 4, a 3x3 kernel would skip pixels; a larger kernel makes the windows overlap.
        stem = conv_norm_relu(channels, widths[0], kernel=max(3, 2 * stem_stride - 1), stride=stem_stride)
        stages = stack(Block, widths, [(depth - 2) // 6] * 3, strides=(1, 2, 2))
        super().__init__(Preprocessing.of(channels, size, mean, std), stem, stages, widths)
        # oneDNN 3.12 corrupts memory in strided 1x1 convolutions of fewer channels, on CPUs without AVX-512.
        self.channels_last = min(widths) >= 8
        self.initialise()


class FourStageResNet(Staged):
    """The ResNets for ImageNet, and ResNet50 as used in CIFAR benchmarks: five maps, `pooled` of 512 or 2,048.

    Args:
        channels: Channels of the input.
        blocks: Number of blocks in each stage. The stages have 64, 128, 256 and 512 channels.
        bottleneck: Use bottleneck blocks, which have four times as many output channels.
        shrink: Use a 7x7 stem with stride 2 and max pooling, as for ImageNet, instead of a 3x3 stem with stride 1.
        size: Input size in pixels, at least 16.
        mean: Mean of each channel of the encoder's input ([0, 1] for uint8 images); None means 0.
        std: Standard deviation of each channel; None means 1.
    """

    def __init__(
        self,
        channels: int,
        *,
        blocks: tuple[int, int, int, int],
        bottleneck: bool = False,
        shrink: bool = True,
        size: Annotated[int, Ge(16)] = 224,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        block = Bottleneck if bottleneck else Block
        widths = [64, *((4 if bottleneck else 1) * width for width in (64, 128, 256, 512))]
        stem = conv_norm_relu(channels, 64, kernel=7, stride=2) if shrink else conv_norm_relu(channels, 64, kernel=3)
        if shrink:
            stem.append(nn.MaxPool2d(3, stride=2, padding=1))
        stages = stack(block, widths, blocks, strides=(1, 2, 2, 2))
        super().__init__(Preprocessing.of(channels, size, mean, std), stem, stages, widths)
        self.initialise()


class Block(nn.Module):
    """Two 3x3 convolutions with a residual connection, which is a 1x1 convolution if the shape changes."""

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.first = conv_norm(fan_in, fan_out, kernel=3, stride=stride)
        self.second = conv_norm(fan_out, fan_out, kernel=3)
        self.shortcut = shortcut(fan_in, fan_out, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.second(self.relu(self.first(x))) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution with a residual connection; the 3x3 has a quarter of the channels."""

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.reduce = conv_norm_relu(fan_in, fan_out // 4, kernel=1)
        self.convolve = conv_norm_relu(fan_out // 4, fan_out // 4, kernel=3, stride=stride)
        self.expand = conv_norm(fan_out // 4, fan_out, kernel=1)
        self.shortcut = shortcut(fan_in, fan_out, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.expand(self.convolve(self.reduce(x))) + self.shortcut(x))


def shortcut(fan_in: int, fan_out: int, stride: int) -> nn.Module:
    """The identity, or a 1x1 convolution if the shape changes."""
    same = fan_in == fan_out and stride == 1
    return nn.Identity() if same else conv_norm(fan_in, fan_out, kernel=1, stride=stride)
