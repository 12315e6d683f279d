"""The ResNets of He et al. 2016 (arXiv 1512.03385): of section 4.2 for CIFAR, of table 1 for ImageNet."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt
from torch import Tensor, nn

from modalities.encoders.base import Preprocessing
from modalities.encoders.staged import Staged, conv_norm, conv_norm_relu, stack


class ResNet(Staged):
    """A 3x3 stem and three stages of basic blocks with convolutional shortcuts: four maps.

    depth: 6n + 2 (8, 14, 20, 32, 56, 110): n blocks a stage. width: channels of the first stage; then 2 x, 4 x.
    stem_width: channels of the stem; None: `width`.
    size: input pixels, >= 16. stem_stride: 2 or 4 shrinks the input at once; without it photos over 32 px are slow.
    mean, std: of each channel, on the scale that the encoder's input has ([0, 1] for uint8 images); None: 0 and 1.
    Raises ValueError for another depth.
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
        # A strided 3x3 kernel would skip pixels at stride 4: the kernel grows so that its windows overlap.
        stem = conv_norm_relu(channels, widths[0], kernel=max(3, 2 * stem_stride - 1), stride=stem_stride)
        stages = stack(Block, widths, [(depth - 2) // 6] * 3, strides=(1, 2, 2))
        super().__init__(Preprocessing.of(channels, size, mean, std), stem, stages, widths)
        self.initialise()


class FourStageResNet(Staged):
    """The ResNets of ImageNet, and ResNet50 as the CIFAR tables have it: five maps, `pooled` of 512 or 2,048.

    blocks: of each stage; the stages have 64, 128, 256, 512 channels, with `bottleneck` blocks four times that.
    shrink: a 7x7 stem of stride 2 and max-pooling, as for ImageNet; else 3x3 and stride 1. size, mean, std: see ResNet.
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
    """Two 3x3 convolutions around a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.first = conv_norm(fan_in, fan_out, kernel=3, stride=stride)
        self.second = conv_norm(fan_out, fan_out, kernel=3)
        self.shortcut = shortcut(fan_in, fan_out, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.second(self.relu(self.first(x))) + self.shortcut(x))


class Bottleneck(nn.Module):
    """A 3x3 convolution at a quarter of the channels between two 1x1 ones, around the same shortcut."""

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
    """Nothing, or a 1x1 convolution where the shape changes."""
    same = fan_in == fan_out and stride == 1
    return nn.Identity() if same else conv_norm(fan_in, fan_out, kernel=1, stride=stride)
