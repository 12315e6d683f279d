"""A projection that is 1-Lipschitz, for critics of the Wasserstein dual."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from losses.base import full_precision


class LipschitzProjection(nn.Module):
    """`clip(W x / r + b)`: r the input's running mean norm, W spectrally normalised, clipped to the unit ball.

    With r held fixed, every step is 1-Lipschitz in `x / r`, hence `<p(x), q(y)>` of two such projections is
    1-Lipschitz in each argument. An L2-normalisation instead of the clip would not be: it magnifies short vectors.
    `[B, D] -> [B, dim]`, fp32.
    """

    norm: Tensor
    batches: Tensor

    def __init__(self, features: int, dim: int) -> None:
        super().__init__()
        linear = nn.Linear(features, dim)
        nn.init.zeros_(linear.bias)
        nn.init.orthogonal_(linear.weight)
        self.linear = spectral_norm(linear, n_power_iterations=2)
        self.register_buffer("norm", torch.zeros(()))
        self.register_buffer("batches", torch.zeros(()))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Average the norm of gathered inputs `[B, D]`: plainly over the first 100 batches, exponentially after."""
        self.batches += 1
        self.norm += (full_precision(x).norm(dim=1).mean() - self.norm) / self.batches.clamp(max=100)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            # The weight is divided, not the input: a queue's worth of inputs would be copied for it.
            weight = cast(Tensor, self.linear.weight) / self.norm.clamp(min=1e-6)
            projected = functional.linear(full_precision(x), weight, cast(Tensor, self.linear.bias))
            return projected / projected.norm(dim=1, keepdim=True).clamp(min=1)


class CosineProjection(nn.Module):
    """`W x / |W x|`: the L2-normalised projection of CRD and InfoNCE. `[B, D] -> [B, dim]`, fp32."""

    def __init__(self, features: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, dim)

    def update(self, x: Tensor) -> None:
        """Nothing to keep: the normalisation is the sample's own."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return functional.normalize(self.linear(full_precision(x)), dim=1)
