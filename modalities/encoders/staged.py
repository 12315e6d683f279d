"""Base class for convolutional networks with a stem and stages, each of which outputs a map."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor, nn

from losses import Features
from modalities.encoders.base import Encoder, Preprocessing


class Staged(Encoder):
    """The outputs of the stem and of the stages are the maps; `pooled` is the spatial mean after `top`.

    Args:
        preprocessing: The input format.
        stem: First layers.
        stages: Stages, in order.
        channels: Channels of each map, starting with the stem.
        top: Layers after the last stage; None means the identity.
        dim: Channels after `top`; None means those of the last stage.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        stem: nn.Module,
        stages: Iterable[nn.Module],
        channels: Sequence[int],
        top: nn.Module | None = None,
        dim: int | None = None,
    ) -> None:
        super().__init__(preprocessing)
        self.stem, self.stages, self.top = stem, nn.ModuleList(stages), top or nn.Identity()
        self.dim, self.map_channels = dim or channels[-1], tuple(channels)

    def forward(self, x: Tensor) -> Features:
        x = self.stem(self.normalise(x))
        maps = [x]
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return Features(self.top(x).mean((2, 3)), maps)

    def initialise(self) -> None:
        """Initialise convolutions with a normal distribution, variance 2 / fan-out (He et al. 2015), biases with 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def conv_norm(fan_in: int, fan_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution with `same` padding and BatchNorm."""
    conv = nn.Conv2d(fan_in, fan_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(fan_out))


def conv_norm_relu(fan_in: int, fan_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """`conv_norm`, then ReLU."""
    return conv_norm(fan_in, fan_out, kernel, stride, groups).append(nn.ReLU())


def stack(
    block: Callable[[int, int, int], nn.Module], widths: Sequence[int], blocks: Sequence[int], strides: Sequence[int]
) -> list[nn.Sequential]:
    """Build stages of blocks. Only the first block of a stage has its stride.

    Args:
        block: Constructor of a block: `block(fan_in, fan_out, stride)`.
        widths: Channels of the stem and of each stage.
        blocks: Number of blocks of each stage.
        strides: Stride of each stage.
    """
    return [
        nn.Sequential(block(fan_in, fan_out, stride), *(block(fan_out, fan_out, 1) for _ in range(count - 1)))
        for fan_in, fan_out, count, stride in zip(widths, widths[1:], blocks, strides, strict=False)
    ]
