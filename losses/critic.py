"""A projection that is 1-Lipschitz, for critics of the Wasserstein dual."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from losses.base import full_precision
from losses.finite import keep_finite

POWER_ITERATIONS = 8


class LipschitzProjection(nn.Module):
    """`W clip(x / r + b)`: r the input's running mean norm, clipped to the unit ball, W spectrally normalised.

    With r held fixed, every step is 1-Lipschitz in `x / r` and the result lies in the unit ball, hence `<p(x), q(y)>`
    of two such projections is 1-Lipschitz in each argument. An L2-normalisation instead of the clip would not be: it
    magnifies short vectors. While W moves, POWER_ITERATIONS a step follow its norm to within 10 per cent.
    centred: inputs that have no common mean need no b. `[B, D] -> [B, dim]`, fp32.
    """

    norm: Tensor
    batches: Tensor

    def __init__(self, features: int, dim: int, centred: bool = False) -> None:
        super().__init__()
        linear = nn.Linear(features, dim, bias=False)
        nn.init.orthogonal_(linear.weight)
        self.linear = spectral_norm(linear, n_power_iterations=POWER_ITERATIONS)
        self.shift = None if centred else nn.Parameter(torch.zeros(features))
        self.register_buffer("norm", torch.zeros(()))
        self.register_buffer("batches", torch.zeros(()))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Average the norm of gathered inputs `[B, D]`: plainly over the first 100 batches, exponentially after; those
        that are not finite are left out."""
        batches = self.batches + 1
        norm = self.norm + (full_precision(x).norm(dim=1).mean() - self.norm) / batches.clamp(max=100)
        keep_finite((self.batches, batches), (self.norm, norm))

    @property
    def weight(self) -> Tensor:
        """W; while training, every look at it goes on with the power iteration, so look once a step."""
        return cast(Tensor, self.linear.weight)

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """weight: W, if it was looked at already."""
        with torch.autocast(x.device.type, enabled=False):
            x = full_precision(x) / self._scale
            if self.shift is not None:
                x = x + self.shift
            return functional.linear(
                x / x.norm(dim=1, keepdim=True).clamp(min=1), self.weight if weight is None else weight
            )

    def products(self, x: Tensor, norm: Tensor, weight: Tensor) -> Callable[[Tensor], Tensor]:
        """Anchors `[A, dim]` to `<anchor, p(x)>` `[A, B]`, of centred inputs `[B, D]` of norm `[B]`.

        Whatever the number of inputs, none of them is projected: `<a, W x> = <W'a, x>`.
        """
        scale = torch.maximum(norm, self._scale)
        return lambda anchors: (anchors @ weight) @ x.T / scale

    @property
    def _scale(self) -> Tensor:
        """r, or 1 while no input was longer than nothing: divided by less, the gradients of such a network explode."""
        return torch.where(self.norm > 1e-6, self.norm, 1.0)


class CosineProjection(nn.Module):
    """`W x / |W x|`: the L2-normalised projection of CRD and InfoNCE. `[B, D] -> [B, dim]`, fp32."""

    def __init__(self, features: int, dim: int, centred: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(features, dim, bias=not centred)

    def update(self, x: Tensor) -> None:
        """Nothing to keep: the normalisation is the sample's own."""

    @property
    def weight(self) -> Tensor:
        """W `[dim, D]`."""
        return self.linear.weight

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return functional.normalize(self.linear(full_precision(x)), dim=1)

    def products(self, x: Tensor, norm: Tensor, weight: Tensor) -> Callable[[Tensor], Tensor]:
        """Anchors `[A, dim]` to `<anchor, p(x)>` `[A, B]`, of inputs `[B, D]`."""
        projected = self(x)
        return lambda anchors: anchors @ projected.T
