"""Numbers that show at once when an embedding collapses."""

from __future__ import annotations

import torch
from torch import Tensor

from losses.unit import unit


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


@torch.no_grad()
def similarity_gap(s: Tensor, t: Tensor) -> Tensor:
    """Mean cosine of the pairs `(s_i, t_i)` less that of all others, `[B, D]` each: 0 if nothing tells them apart.

    Of all others without `[B, B]`: they are what the sums have beyond the pairs.
    """
    n = len(s)
    s, t = unit(s.cpu().double()), unit(t.cpu().double())
    pairs = (s * t).sum()
    others = s.sum(0) @ t.sum(0) - pairs
    return (pairs / n - others / max(n * (n - 1), 1)).float()


def pair_metrics(s: Tensor, t: Tensor) -> dict[str, Tensor]:
    """What shows a collapse of a student's embeddings beside the teacher's in the same space, `[B, D]` each."""
    return {
        "similarity_gap": similarity_gap(s, t),
        "projected_std": relative_std(s),
        "effective_rank": effective_rank(s),
    }
