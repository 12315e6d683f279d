"""Metrics that reveal the collapse of an embedding."""

from __future__ import annotations

import torch
from torch import Tensor

from losses.unit import unit


@torch.no_grad()
def effective_rank(x: Tensor) -> Tensor:
    """Effective rank: `exp(entropy)` of the eigenvalues of the covariance (Roy and Vetterli 2007).

    Args:
        x: `[B, D]`.

    Returns:
        A scalar from 1 to min(B - 1, D); nan if x is not finite.
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
    """Root mean variance divided by root mean square: 0 if all vectors are equal, 1 if their mean is 0.

    Args:
        x: `[B, D]`.
    """
    x = x.cpu().double()
    return ((x - x.mean(0)).square().sum(1).mean() / x.square().sum(1).mean().clamp(min=1e-300)).sqrt().float()


@torch.no_grad()
def similarity_gap(s: Tensor, t: Tensor) -> Tensor:
    """Mean cosine of the pairs `(s_i, t_i)` minus that of all other combinations.

    It is 0 if pairs cannot be distinguished from other combinations. No `[B, B]` matrix is computed.

    Args:
        s: `[B, D]`.
        t: `[B, D]`.
    """
    n = len(s)
    s, t = unit(s.cpu().double()), unit(t.cpu().double())
    pairs = (s * t).sum()
    others = s.sum(0) @ t.sum(0) - pairs
    return (pairs / n - others / max(n * (n - 1), 1)).float()


def pair_metrics(s: Tensor, t: Tensor) -> dict[str, Tensor]:
    """Metrics that reveal a collapse of student embeddings.

    Args:
        s: Embeddings of the student, `[B, D]`.
        t: Embeddings of the teacher in the same space, `[B, D]`.
    """
    return {
        "similarity_gap": similarity_gap(s, t),
        "projected_std": relative_std(s),
        "effective_rank": effective_rank(s),
    }
