"""WKD-F: the Wasserstein distance between Gaussians of the last maps (Lv, Yang and Li 2024, arXiv 2412.08139)."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn

from losses.base import Batch, Dims, Features, Loss
from losses.maps import as_map, paired_channels


class WKDFeature(Loss):
    """`mean_i (ratio * |mu_S - mu_T|^2 + |sigma_S - sigma_T|^2)`, over channels a sum, over samples a mean; needs maps.

    With ratio 1 it is W2^2 between the Gaussians of diagonal covariance that fit each sample's last map, mu and sigma
    taken over the positions, the student's after a 1x1 convolution to the teacher's channels. The sizes may differ.

    ratio: how much the means count beside the deviations. The published weight of this loss is 0.08; its projector has
    batch normalisation and ReLU behind the convolution, which ours leaves out: samples then stay independent.
    Raises ValueError if a side has no maps.
    """

    needs_maps: ClassVar[bool] = True

    def __init__(self, student: Dims, teacher: Dims, *, ratio: Annotated[float, Ge(0)] = 4.0) -> None:
        super().__init__()
        self.ratio = ratio
        self.projector = nn.Conv2d(*paired_channels("WKDFeature", student, teacher)[-1], kernel_size=1)

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        s, t = as_map(student.maps[-1]), as_map(teacher.maps[-1])
        with torch.autocast(s.device.type, enabled=False):
            mean_student, std_student = _gaussian(self.projector(s))
            mean_teacher, std_teacher = _gaussian(t)
        distance = self.ratio * (mean_student - mean_teacher).square() + (std_student - std_teacher).square()
        return distance.sum(1).mean()


def _gaussian(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation over the positions, `[B, C]` each; the 1e-5 keeps the root's gradient finite at a flat map."""
    variance, mean = torch.var_mean(x.flatten(2), dim=2, correction=0)
    return mean, (variance + 1e-5).sqrt()
