"""Similarity-preserving distillation (Tung and Mori 2019, arXiv 1907.09682)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from losses.base import Batch, Dims, Features, Loss
from losses.gather import gather
from losses.maps import as_map, paired_channels
from losses.unit import unit


class SP(Loss):
    """Similarity-preserving distillation: match the similarities between samples.

    `loss = |G_S - G_T|_F^2 / B^2`, where G is the Gram matrix of the flattened deepest maps of the global batch of B
    samples, with L2-normalised rows. Requires feature maps, which may differ in channels and size. A batch of one
    sample gives 0.

    Raises:
        ValueError: A network has no maps.
    """

    needs_maps: ClassVar[bool] = True

    def __init__(self, student: Dims, teacher: Dims) -> None:
        super().__init__()
        paired_channels("SP", student, teacher)

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        return F.mse_loss(_similarity(student.maps[-1]), _similarity(teacher.maps[-1]))


def _similarity(x: Tensor) -> Tensor:
    x = gather(as_map(x).flatten(1))
    with torch.autocast(x.device.type, enabled=False):
        return unit(x @ x.T)
