"""Batch normalisation inside a loss, over the global batch and without running statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from losses.gather import gather


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance of each channel over the global batch, with gradient.

    Args:
        x: `[B, C, ...]`, with the same B on every rank.

    Returns:
        Mean and variance, `[C]` each.
    """
    own = torch.stack(torch.var_mean(x, (0, *range(2, x.ndim)), correction=0))  # [2, C]
    variances, means = gather(own[None]).unbind(1)  # [ranks, C] each
    mean = means.mean(0)
    return mean, (variances + (means - mean).square()).mean(0)


class BatchNorm(nn.Module):
    """Batch normalisation over the global batch, `weight * (x - mean) / sqrt(var + epsilon) + bias`.

    Equivalent to `nn.BatchNorm2d` in training mode (Ioffe and Szegedy 2015, arXiv 1502.03167), for projectors that are
    discarded after training. The result does not depend on the number of ranks, and a batch with one value per channel
    is allowed. Evaluation also uses batch statistics: there are no running statistics that a batch with NaN would
    destroy.

    Args:
        channels: C of the maps `[B, C, H, W]`. B must be the same on every rank.
        epsilon: Added to the variance.
    """

    def __init__(self, channels: int, *, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[B, C, H, W]`."""
        mean, variance = moments(x)
        scale = self.weight / (variance + self.epsilon).sqrt()
        return (x - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]
