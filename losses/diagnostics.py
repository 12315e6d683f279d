"""Numbers that show at once when an embedding collapses."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def effective_rank(x: Tensor) -> Tensor:
    """`exp(entropy)` of the eigenvalues of the covariance of `[B, D]` (Roy and Vetterli 2007): 1 to min(B - 1, D).

    nan where x is not finite.
    """
    x = x.cpu().double()  # not every device has float64
    if not x.isfinite().all():
        return torch.tensor(torch.nan)
    x = x - x.mean(0)
    gram = x @ x.T if x.shape[0] < x.shape[1] else x.T @ x
    spectrum = torch.linalg.eigvalsh(gram).clamp(min=0)
    p = spectrum / spectrum.sum().clamp(min=1e-300)
    return torch.exp(torch.special.entr(p).sum()).float()


@torch.no_grad()
def relative_std(x: Tensor) -> Tensor:
    """How much `[B, D]` vectors differ: root mean variance over root mean square, 0 (all equal) to 1 (centred)."""
    x = x.cpu().double()
    return ((x - x.mean(0)).square().sum(1).mean() / x.square().sum(1).mean().clamp(min=1e-300)).sqrt().float()
