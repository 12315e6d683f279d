"""Teacher features on a common scale: zero mean and unit variance a dimension, by running statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from losses.base import full_precision
from losses.finite import keep_finite


class Standardise(nn.Module):
    """`(x - mean) / std` of `[B, D]` features, with statistics averaged over the training batches seen so far.

    A plain average over the first `window` batches, an exponential one after that: right from the first batch on.
    Give it the gathered batch, so that all ranks hold the same statistics; one that is not finite is left out. fp32.
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
        """Move mean and variance towards those of `x [N, D]`; the first batches count alike.

        weight: `[N]`, of sum 1, each sample's share in both; uniform without.
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
        # The floor keeps dimensions that never vary (dead units) at zero instead of noise.
        scale = self.variance.sqrt().clamp(min=1e-3 * self.variance.mean().sqrt() + 1e-6)
        return (full_precision(x) - self.mean) / scale
