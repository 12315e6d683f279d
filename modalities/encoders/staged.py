"""What the convolutional networks of the literature have in common: a stem and stages, each of which leaves a map."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor, nn

from losses import Features
from modalities.encoders.base import Encoder, Preprocessing


class Staged(Encoder):
    """The outputs of stem and stages are the maps, the mean of `top` of the last one is `pooled`.

    channels: of each map, the stem's first. top: what follows the last stage, to `dim` channels; None: nothing.
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
        """Normal weights of variance 2 / fan-out (He et al. 2015), biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def conv_norm(fan_in: int, fan_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution that keeps the size (but for the stride), and its BatchNorm."""
    conv = nn.Conv2d(fan_in, fan_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(fan_out))


def conv_norm_relu(fan_in: int, fan_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """`conv_norm`, then ReLU."""
    return conv_norm(fan_in, fan_out, kernel, stride, groups).append(nn.ReLU())


def stack(
    block: Callable[[int, int, int], nn.Module], widths: Sequence[int], blocks: Sequence[int], strides: Sequence[int]
) -> list[nn.Sequential]:
    """Stages of blocks, each `block(fan_in, fan_out, stride)`; the first of a stage has its stride.

    widths: of the stem and of each stage. blocks, strides: of each stage.
    """
    return [
        nn.Sequential(block(fan_in, fan_out, stride), *(block(fan_out, fan_out, 1) for _ in range(count - 1)))
        for fan_in, fan_out, count, stride in zip(widths, widths[1:], blocks, strides, strict=False)
    ]
