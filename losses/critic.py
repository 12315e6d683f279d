"""Projections of critics: 1-Lipschitz into the unit ball, only spectrally normalised, or L2-normalised."""

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


def spectral_linear(features: int, dim: int, bias: bool = False) -> nn.Module:
    """Make a linear layer of spectral norm 1 (Miyato et al. 2018, arXiv 1802.05957), initialised orthogonally.

    Args:
        features: Input size.
        dim: Output size.
        bias: Whether it has a bias.
    """
    linear = nn.Linear(features, dim, bias=bias)
    nn.init.orthogonal_(linear.weight)
    return spectral_norm(linear, n_power_iterations=POWER_ITERATIONS)


class LipschitzProjection(nn.Module):
    """A 1-Lipschitz projection into the unit ball, `W clip(x / r + b)`. `[B, D] -> [B, dim]`, fp32.

    r is the running mean norm of the input, clip projects onto the unit ball, and W is spectrally normalised. For fixed
    r, every operation is 1-Lipschitz in `x / r`, and the result is in the unit ball. Therefore, the product
    `<p(x), q(y)>` of two such projections is 1-Lipschitz in each argument. With L2 normalisation instead of the clip,
    it would not be, since short vectors would be magnified. POWER_ITERATIONS per step estimate the norm of the changing
    W to within 10 %.

    Args:
        features: D.
        dim: Output size.
        centred: Whether the inputs have zero mean; if so, b is omitted.
    """

    norm: Tensor
    batches: Tensor

    def __init__(self, features: int, dim: int, centred: bool = False) -> None:
        super().__init__()
        self.linear = spectral_linear(features, dim)
        self.shift = None if centred else nn.Parameter(torch.zeros(features))
        self.register_buffer("norm", torch.zeros(()))
        self.register_buffer("batches", torch.zeros(()))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Update the running mean norm: a plain average over the first 100 batches, exponential afterwards.

        Batches that are not finite are skipped.

        Args:
            x: Gathered inputs, `[B, D]`.
        """
        batches = self.batches + 1
        norm = self.norm + (full_precision(x).norm(dim=1).mean() - self.norm) / batches.clamp(max=100)
        keep_finite((self.batches, batches), (self.norm, norm))

    @property
    def weight(self) -> Tensor:
        """W, `[dim, D]`. In training, each access continues the power iteration, so read it only once per step."""
        return cast(Tensor, self.linear.weight)

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Project inputs.

        Args:
            x: `[B, D]`.
            weight: W, if it has already been read.
        """
        with torch.autocast(x.device.type, enabled=False):
            return functional.linear(self._clipped(x), self.weight if weight is None else weight)

    def products(self, x: Tensor, norm: Tensor, weight: Tensor) -> Callable[[Tensor], Tensor]:
        """Make a function from anchors `[A, dim]` to the products `<anchor, p(x)>`, `[A, B]`.

        The inputs, however many, are not projected: `<a, W x> = <W'a, x>`.

        Args:
            x: Inputs, `[B, D]`.
            norm: Their norms, `[B]`.
            weight: W.
        """
        if self.shift is not None:
            clipped = self._clipped(x)
            return lambda anchors: (anchors @ weight) @ clipped.T
        scale = torch.maximum(norm, self._scale)
        return lambda anchors: (anchors @ weight) @ x.T / scale

    def _clipped(self, x: Tensor) -> Tensor:
        x = full_precision(x) / self._scale
        if self.shift is not None:
            x = x + self.shift
        return x / x.norm(dim=1, keepdim=True).clamp(min=1)

    @property
    def _scale(self) -> Tensor:
        """r, or 1 as long as all inputs have been 0, since dividing by less would make gradients explode."""
        return torch.where(self.norm > 1e-6, self.norm, 1.0)


class SpectralProjection(nn.Module):
    """A spectrally normalised linear layer, `W x + b`. `[B, D] -> [B, dim]`, fp32.

    This is "Lipschitz by spectral normalisation" taken literally. It is 1-Lipschitz but unbounded, so `<p(x), q(y)>` is
    Lipschitz in x with the constant `|q(y)|`.

    Args:
        features: D.
        dim: Output size.
        centred: Whether the inputs have zero mean; if so, b is omitted.
    """

    def __init__(self, features: int, dim: int, centred: bool = False) -> None:
        super().__init__()
        self.linear = spectral_linear(features, dim, bias=not centred)

    def update(self, x: Tensor) -> None:
        """Do nothing: there are no running statistics."""

    @property
    def weight(self) -> Tensor:
        """W, `[dim, D]`. In training, each access continues the power iteration, so read it only once per step."""
        return cast(Tensor, self.linear.weight)

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Project inputs.

        Args:
            x: `[B, D]`.
            weight: W, if it has already been read.
        """
        with torch.autocast(x.device.type, enabled=False):
            return functional.linear(full_precision(x), self.weight if weight is None else weight, self._bias)

    def products(self, x: Tensor, norm: Tensor, weight: Tensor) -> Callable[[Tensor], Tensor]:
        """Make a function from anchors `[A, dim]` to the products `<anchor, p(x)>`, `[A, B]`.

        Args:
            x: Inputs, `[B, D]`. They are not projected.
            norm: Not used.
            weight: W.
        """
        bias = weight.new_zeros(len(weight)) if self._bias is None else self._bias
        return lambda anchors: (anchors @ weight) @ x.T + (anchors @ bias)[:, None]

    @property
    def _bias(self) -> Tensor | None:
        return cast("Tensor | None", self.linear.bias)


class CosineProjection(nn.Module):
    """The L2-normalised linear projection of CRD and InfoNCE, `W x / |W x|`. `[B, D] -> [B, dim]`, fp32.

    Args:
        features: D.
        dim: Output size.
        centred: Whether the inputs have zero mean; if so, the bias is omitted.
    """

    def __init__(self, features: int, dim: int, centred: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(features, dim, bias=not centred)

    def update(self, x: Tensor) -> None:
        """Do nothing: there are no running statistics."""

    @property
    def weight(self) -> Tensor:
        """W `[dim, D]`."""
        return self.linear.weight

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return functional.normalize(self.linear(full_precision(x)), dim=1)

    def products(self, x: Tensor, norm: Tensor, weight: Tensor) -> Callable[[Tensor], Tensor]:
        """Make a function from anchors `[A, dim]` to the products `<anchor, p(x)>`, `[A, B]`.

        Args:
            x: Inputs, `[B, D]`.
            norm: Not used.
            weight: Not used.
        """
        projected = self(x)
        return lambda anchors: anchors @ projected.T


CRITICS: dict[str, type[LipschitzProjection] | type[SpectralProjection] | type[CosineProjection]] = {
    "lipschitz": LipschitzProjection,
    "spectral": SpectralProjection,
    "cosine": CosineProjection,
}
"""Name in configs -> class."""
