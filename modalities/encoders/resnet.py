"""The ResNet of the distillation literature: He et al. 2016, section 4.2 (CIFAR), with convolutional shortcuts."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt
from torch import Tensor, nn

from losses import Features
from modalities.encoders.base import Encoder, Preprocessing


class ResNet(Encoder):
    """A 3x3 stem and three stages of basic blocks; the stages' outputs are the maps, the mean of the last is `pooled`.

    depth: 6n + 2 (8, 14, 20, 32, 56, 110): n blocks a stage. width: channels of stem and first stage; then 2 x, 4 x.
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
        stem_stride: Literal[1, 2, 4] = 1,
        size: Annotated[int, Ge(16)] = 32,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__(Preprocessing.of(channels, size, mean, std))
        if depth < 8 or depth % 6 != 2:
            below = max(8, depth - (depth - 2) % 6)
            raise ValueError(f"depth: {depth} is not 6n + 2; the nearest depths are {below} and {below + 6}")
        blocks = (depth - 2) // 6
        widths = [width, 2 * width, 4 * width]
        # A strided 3x3 kernel would skip pixels at stride 4: the kernel grows so that its windows overlap.
        self.stem = conv_norm(channels, width, kernel=max(3, 2 * stem_stride - 1), stride=stem_stride)
        self.stages = nn.ModuleList(
            nn.Sequential(Block(fan_in, fan_out, stride), *(Block(fan_out, fan_out) for _ in range(blocks - 1)))
            for fan_in, fan_out, stride in zip([width, *widths], widths, (1, 2, 2), strict=False)
        )
        self.relu = nn.ReLU()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.dim, self.map_channels = widths[-1], tuple(widths)

    def forward(self, x: Tensor) -> Features:
        x = self.relu(self.stem(self.normalise(x)))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return Features(x.mean((2, 3)), maps)


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, fan_in: int, fan_out: int, stride: int = 1) -> None:
        super().__init__()
        self.first = conv_norm(fan_in, fan_out, kernel=3, stride=stride)
        self.second = conv_norm(fan_out, fan_out, kernel=3)
        same = fan_in == fan_out and stride == 1
        self.shortcut = nn.Identity() if same else conv_norm(fan_in, fan_out, kernel=1, stride=stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.second(self.relu(self.first(x))) + self.shortcut(x))


def conv_norm(fan_in: int, fan_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution that keeps the size (but for the stride), and its BatchNorm."""
    conv = nn.Conv2d(fan_in, fan_out, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(fan_out))
