"""Standardise features to zero mean and unit variance per dimension.

Teacher features are standardised by running statistics, student features by batch statistics.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from losses.base import full_precision
from losses.batch_norm import moments
from losses.finite import keep_finite


class Standardise(nn.Module):
    """Standardise features `[B, D]` by running statistics, `(x - mean) / std`, in fp32.

    Statistics are a plain average over the first `window` training batches and an exponential one afterwards, so they
    are valid from the first batch on. Update with the gathered batch: all ranks then have the same statistics.

    Args:
        dim: D.
        window: Number of batches.
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(self, dim: int, window: int = 100) -> None:
        super().__init__()
        self.window = window
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.zeros(dim))
        self.register_buffer("batches", torch.zeros(()))

    @torch.no_grad()
    def update(self, x: Tensor, weight: Tensor | None = None) -> None:
        """Update mean and variance. Batches that are not finite are skipped.

        Args:
            x: The gathered batch, `[N, D]`.
            weight: Weights of the samples, `[N]`, with sum 1. None means uniform.
        """
        x = full_precision(x)
        weight = x.new_full((len(x),), 1 / len(x)) if weight is None else weight.to(x.dtype)
        mean = weight @ x
        batches = self.batches + 1
        share = 1 / batches.clamp(max=self.window)
        difference = mean - self.mean
        spread = weight @ (x - mean) ** 2 + (1 - share) * difference**2
        keep_finite(
            (self.batches, batches),
            (self.mean, self.mean + share * difference),
            (self.variance, self.variance + share * (spread - self.variance)),
        )

    def forward(self, x: Tensor) -> Tensor:
        # The minimum keeps constant dimensions (dead units) at zero instead of amplifying noise.
        scale = self.variance.sqrt().clamp(min=1e-3 * self.variance.mean().sqrt() + 1e-6)
        return (full_precision(x) - self.mean) / scale


LEAST_SHARE = 0.01
"""Minimum variance relative to the mean square of all dimensions; smaller variances are not amplified further."""
SMALLEST_SQUARE = 1e-12


def standardised(x: Tensor) -> Tensor:
    """Standardise by batch statistics: `(x - mean) / sqrt(variance + 0.01 mean square)` per dimension (global batch).

    Unlike a teacher, a student changes during training. Batch statistics are therefore used, and gradients flow through
    them. The mean square is over all dimensions and includes the mean, so the result shrinks if the common mean of the
    features grows.

    Args:
        x: Features of the samples of this rank, `[B, D]`, fp32 or float64, with the same B on every rank.

    Returns:
        `[B, D]`. Independent of the scale of x; 0 for a batch of one sample.
    """
    mean, variance = moments(x)
    mean_square = (variance + mean.square()).mean()
    # With a smaller divisor, gradients would explode if all features are 0.
    floor = torch.where(mean_square > SMALLEST_SQUARE, LEAST_SHARE * mean_square, 1.0)
    return (x - mean) / (variance + floor).sqrt()
