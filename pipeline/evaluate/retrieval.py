"""Retrieval between two networks: ranks of the true pairs, recall and median rank, their intervals, and chance."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Scores = dict[str, float]

DEPTHS = 1, 5, 10
"""k of the recalls R@k."""

DRAWS = 1000
"""Number of bootstrap samples."""


def ranks(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Rank of each query's partner by cosine similarity, starting at 1.

    Ties count against the query, so constant features retrieve nothing. A vector that is not finite gets the last rank.

    Args:
        queries: Features `[N, D]`.
        gallery: Features `[N, D]`; row i is the partner of query i.

    Returns:
        int64 `[N]`.
    """
    q, g = F.normalize(torch.from_numpy(queries)), F.normalize(torch.from_numpy(gallery))
    found: list[Tensor] = []
    for first in range(0, len(q), 1024):
        similarity = q[first : first + 1024] @ g.T
        own = similarity[torch.arange(len(similarity)), torch.arange(first, first + len(similarity))]
        found.append((~(similarity < own[:, None] - 1e-6)).sum(1))
    rank: np.ndarray = torch.cat(found).numpy()
    return rank


def retrieval(queries: np.ndarray, gallery: np.ndarray) -> Scores:
    """Retrieve the partner of each query; see `ranks`.

    Args:
        queries: Features `[N, D]`.
        gallery: Features `[N, D]`; row i is the partner of query i.

    Returns:
        `R@1`, `R@5` and `R@10` in [0, 1], and `median_rank`.
    """
    return summary(ranks(queries, gallery))


def summary(rank: np.ndarray) -> Scores:
    """Recalls and median of ranks `[N]`, as `retrieval` returns them."""
    return {**{f"R@{k}": float((rank <= k).mean()) for k in DEPTHS}, "median_rank": float(np.median(rank))}


def intervals(rank: np.ndarray, seed: int = 0) -> Scores:
    """95 % confidence intervals over the queries: Wilson for recalls, percentile bootstrap for the median rank.

    For recalls, the bootstrap would give an empty interval if none or all of the queries find their partner.

    Args:
        rank: Ranks `[N]`.
        seed: Seed of the bootstrap.

    Returns:
        `R@1_low`, `R@1_high` and so on, as for `summary`.
    """
    found: Scores = {}
    for name, value in summary(rank).items():
        low, high = _median_interval(rank, seed) if name == "median_rank" else interval(value, len(rank))
        found |= {f"{name}_low": low, f"{name}_high": high}
    return found


def _median_interval(rank: np.ndarray, seed: int) -> tuple[float, float]:
    draw, n = np.random.default_rng(seed), len(rank)
    at_once = max(1, min(DRAWS, 4_000_000 // n))  # bounds the memory
    parts = [
        np.median(rank[draw.integers(0, n, (min(at_once, DRAWS - done), n))], axis=1)
        for done in range(0, DRAWS, at_once)
    ]
    low, high = np.quantile(np.concatenate(parts), (0.025, 0.975))
    return float(low), float(high)


def chance(samples: int) -> Scores:
    """Expected recalls k / N and expected median rank (N + 1) / 2 of a random order of N samples."""
    return {**{f"R@{k}": min(k / samples, 1.0) for k in DEPTHS}, "median_rank": (samples + 1) / 2}


def interval(share: float, n: float, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927).

    Args:
        share: The proportion in [0, 1].
        n: Number of samples.
        z: Quantile of the normal distribution.
    """
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
