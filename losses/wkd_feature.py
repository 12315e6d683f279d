"""WKD-F: Wasserstein distance between Gaussians of feature maps (Lv, Yang and Li 2024, arXiv 2412.08139)."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn

from losses.base import Batch, Dims, Features, Loss
from losses.batch_norm import BatchNorm
from losses.maps import as_map, paired_channels


class WKDFeature(Loss):
    """WKD-F: match the mean and standard deviation of the deepest feature map of each sample.

    `loss = mean_i (ratio * |mu_S - mu_T|^2 + |sigma_S - sigma_T|^2)`, summed over channels. With ratio 1, this is W2^2
    between Gaussians with diagonal covariance that are fitted to the map of each sample; mu and (unbiased) sigma are
    computed over positions. The student's map `[B, C, H, W]`, or tokens `[B, N, C]`, is projected to the teacher's
    channels by a 1x1 convolution, batch normalisation and ReLU. The maps may differ in size. The published weight is
    0.08, with a cosine decay from epoch 150 of 240.

    Args:
        ratio: Weight of the mean term relative to the standard-deviation term. The paper uses 4, or 8 when combined
            with `WKDLogit`.

    Raises:
        ValueError: A network has no maps.
    """

    needs_maps: ClassVar[bool] = True

    def __init__(self, student: Dims, teacher: Dims, *, ratio: Annotated[float, Ge(0)] = 4.0) -> None:
        super().__init__()
        self.ratio = ratio
        channels = paired_channels("WKDFeature", student, teacher)[-1]
        # Without bias, since normalisation would remove it.
        convolution = nn.Conv2d(*channels, kernel_size=1, bias=False)
        self.projector = nn.Sequential(convolution, BatchNorm(channels[1]), nn.ReLU())

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        s, t = as_map(student.maps[-1]), as_map(teacher.maps[-1])
        with torch.autocast(s.device.type, enabled=False):
            mean_student, std_student = _gaussian(self.projector(s))
            mean_teacher, std_teacher = _gaussian(t)
        distance = self.ratio * (mean_student - mean_teacher).square() + (std_student - std_teacher).square()
        return distance.sum(1).mean()


def _gaussian(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation over positions, `[B, C]` each. 1e-5 keeps the gradient of the root finite."""
    x = x.flatten(2)
    variance, mean = torch.var_mean(x, dim=2, correction=min(1, x.shape[2] - 1))  # 0 for a single position
    return mean, (variance + 1e-5).sqrt()
