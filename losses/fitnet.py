"""FitNets: hints from an intermediate layer (Romero et al. 2015, arXiv 1412.6550)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losses.base import Batch, Dims, Features, Loss
from losses.maps import channels_of, paired_channels, paired_maps, same_size


class FitNet(Loss):
    """`mean((r(m_S) - m_T)^2)`, r a 1x1 convolution from the student's channels to the teacher's; needs maps.

    layer: index into the paired maps, negative from the deepest; the middle one without. If the sides differ in their
    number of maps, the last ones are paired; if in size, the larger map is average-pooled.
    Raises ValueError if a side has no maps, or not that many.
    """

    needs_maps: ClassVar[bool] = True

    def __init__(self, student: Dims, teacher: Dims, *, layer: int | None = None) -> None:
        super().__init__()
        pairs = len(paired_channels("FitNet", student, teacher))
        self.layer = pairs // 2 if layer is None else layer
        self.regressor = nn.Conv2d(*channels_of("FitNet", student, teacher, self.layer), kernel_size=1)

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        s, t = same_size(*paired_maps(student, teacher)[self.layer])
        with torch.autocast(s.device.type, enabled=False):
            return F.mse_loss(self.regressor(s), t)
