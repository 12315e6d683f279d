"""FitNets: hints from an intermediate layer (Romero et al. 2015, arXiv 1412.6550)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losses.base import Batch, Dims, Features, Loss, full_precision
from losses.batch_norm import BatchNorm
from losses.maps import Size, as_grid, channels_of, pair_up, paired_sizes


class FitNet(Loss):
    """FitNets: regression of an intermediate feature map of the teacher.

    `loss = mean((ReLU(BN(conv(m_S))) - m_T)^2)`, where the convolution maps the student's map to the size and channels
    of the teacher's. The regressor is that of the CRD benchmark (Tian et al. 2020, arXiv 1910.10699), published with
    weight 100. If the student's map is twice as large, the convolution is 3x3 with stride 2; if it is half as large,
    4x4 transposed with stride 2; otherwise, its kernel is `1 + H_S - H_T` by `1 + W_S - W_T`. Of tokens `[B, N, C]`,
    the last ones that form a square grid are used. Requires maps of a fixed size.

    Args:
        layer: Index of the pair of maps, from shallow to deep; negative values count from the deepest. None means the
            middle one (index 2 of the four maps of a CIFAR ResNet, as published). If the networks have different
            numbers of maps, the deepest ones are paired.

    Raises:
        ValueError: A network has no maps or lacks this layer, or the sizes are unknown, variable or not supported.
    """

    needs_maps: ClassVar[bool] = True
    needs_sizes: ClassVar[bool] = True

    def __init__(self, student: Dims, teacher: Dims, *, layer: int | None = None) -> None:
        super().__init__()
        sizes = paired_sizes("FitNet", student, teacher)
        self.layer = len(sizes) // 2 if layer is None else layer
        channels = channels_of("FitNet", student, teacher, self.layer)
        s, t = sizes[self.layer]
        if s is None or t is None or not _covered(s, t):
            fits = [str(i) for i, (a, b) in enumerate(sizes) if a is not None and b is not None and _covered(a, b)]
            cure = f"Set layer to {' or '.join(fits)}" if fits else "No layer is supported: change the input size"
            raise ValueError(
                f"FitNet, layer {self.layer}: no convolution maps the student's map ({_words(s)}) to the teacher's "
                f"({_words(t)}). Both sizes must be fixed, the student's half as large as the teacher's or at least as "
                f"large. {cure}, or use a loss that pools the larger map (at, vid)."
            )
        self.regressor = nn.Sequential(_convolution(channels, s, t), BatchNorm(channels[1]), nn.ReLU())

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        s, t = (full_precision(as_grid(x)) for x in pair_up(student.maps, teacher.maps)[self.layer])
        with torch.autocast(s.device.type, enabled=False):
            return F.mse_loss(self.regressor(s), t)


def _covered(student: Size, teacher: Size) -> bool:
    """Whether the regressor can map from the student's size to the teacher's."""
    return _twice(teacher, student) or all(s >= t for s, t in zip(student, teacher, strict=True))


def _twice(large: Size, small: Size) -> bool:
    return large == tuple(2 * n for n in small)


def _convolution(channels: tuple[int, int], student: Size, teacher: Size) -> nn.Module:
    """The convolution between two sizes, without a bias, since normalisation would remove it."""
    if _twice(student, teacher):
        return nn.Conv2d(*channels, kernel_size=3, stride=2, padding=1, bias=False)
    if _twice(teacher, student):
        return nn.ConvTranspose2d(*channels, kernel_size=4, stride=2, padding=1, bias=False)
    return nn.Conv2d(*channels, kernel_size=(1 + student[0] - teacher[0], 1 + student[1] - teacher[1]), bias=False)


def _words(size: Size | None) -> str:
    return "its size varies" if size is None else f"{size[0]} x {size[1]}"
