"""A memory bank: one unit vector for each sample of the training set, and the draw of negatives from it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losses.finite import all_finite

CHUNK = 1 << 24
"""Numbers of the largest intermediate tensor, 64 MiB in fp32."""

DENSE = 100
"""Multiplying by the whole bank is as fast as fetching rows up to banks of about this many times the rows fetched."""


class Bank(nn.Module):
    """`rows [N, dim]`, drawn from U(-1, 1) / sqrt(dim / 3); a visit blends a row with its new vector.

    A constant for autograd. `[B, K, dim]` gathered rows are never held: either all N rows are multiplied at once and
    K of the products are picked, or a few samples at a time fetch their K rows.
    """

    rows: Tensor

    def __init__(self, samples: int, dim: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        bound = (3 / dim) ** 0.5
        self.register_buffer("rows", torch.empty(samples, dim).uniform_(-bound, bound))

    @torch.no_grad()
    def similarity(self, x: Tensor, index: Tensor) -> Tensor:
        """`<x_i, rows[index_ij]>`: `[B, dim]`, `[B, K] -> [B, K]`."""
        rows = self.rows.to(x.dtype)
        parts = zip(*self._chunks(x, index), strict=True)
        if self._dense(index):
            return torch.cat([(a @ rows.T).gather(1, i) for a, i in parts])
        return torch.cat([(rows[i] @ a[:, :, None])[:, :, 0] for a, i in parts])

    @torch.no_grad()
    def combine(self, weight: Tensor, index: Tensor) -> Tensor:
        """`sum_j weight_ij rows[index_ij]`: `[B, K]`, `[B, K] -> [B, dim]`; the gradient of `similarity`."""
        rows = self.rows.to(weight.dtype)
        if not self._dense(index):
            return F.embedding_bag(index, rows, per_sample_weights=weight, mode="sum")
        parts = zip(*self._chunks(weight, index), strict=True)
        return torch.cat([w.new_zeros(len(w), len(rows)).scatter_add_(1, i, w) @ rows for w, i in parts])

    @torch.no_grad()
    def update(self, x: Tensor, index: Tensor) -> None:
        """Blend the rows at `index [B]` with `x [B, dim]` and normalise; of an index given twice the last counts.

        An x that is not all finite is left out.
        """
        last = last_occurrence(index, len(self.rows))
        before = self.rows[index]
        blend = F.normalize(self.momentum * before + (1 - self.momentum) * x[last].to(before.dtype), dim=1)
        self.rows[index] = torch.where(all_finite(blend), blend, before)

    def _dense(self, index: Tensor) -> bool:
        return len(self.rows) <= DENSE * index.shape[1]

    def _chunks(self, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
        samples, dim = self.rows.shape
        width = samples if self._dense(tensors[-1]) else tensors[-1].shape[1] * dim
        return [tensor.split(max(CHUNK // width, 1)) for tensor in tensors]


def last_occurrence(index: Tensor, samples: int) -> Tensor:
    """For each position of `index [B]`, of numbers below `samples`, the last one that holds the same value: writes then
    agree in any order."""
    last = index.new_zeros(samples)
    return last.scatter_reduce_(0, index, torch.arange(len(index), device=index.device), "amax")[index]


def draw_negatives(index: Tensor, labels: Tensor, count: int, key: Tensor) -> Tensor:
    """`count` indices for each sample `index [B]` of a set with `labels [N]` (-1 unknown): `[B, count]`.

    Samples that share a known label are left out, the sample itself always. (If all share one label, only itself.)
    Each of the n others comes with the same probability count / n: they are laid end to end from a random start and
    cut into `count` pieces, one is drawn from each. None comes twice if n >= count. key `[B]`: random int64.
    """
    label = labels[index]
    in_order, order = labels.sort(stable=True)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(labels), device=labels.device))
    first, stop = torch.searchsorted(in_order, label), torch.searchsorted(in_order, label, right=True)
    by_label = (label >= 0) & (stop - first < len(labels))
    first = torch.where(by_label, first, place[index])[:, None]  # of the places left out
    left_out = torch.where(by_label, stop - first[:, 0], 1)[:, None]

    n = len(labels) - left_out
    bits = random_bits(key, count + 1)  # [B, count + 1] of 31 bits
    cut = torch.arange(count + 1, device=index.device) * n // count
    low, width = cut[:, :-1], cut.diff(dim=1)
    chosen = low + (bits[:, :-1] * width >> 31) + (bits[:, -1:] * n >> 31)
    chosen -= n * (chosen >= n)
    chosen += left_out * (chosen >= first)
    return order[chosen]


def random_bits(key: Tensor, count: int) -> Tensor:
    """31 random bits as int64 `[B, count]`, a function of `key [B]` and the column: a counter-based generator.

    torch's own generators would have to draw the numbers of all ranks on each, wait for the device, and cannot be
    compiled. Counters are spread by the golden ratio and mixed twice, as SplitMix64 does (Steele et al. 2014).
    """
    counter = torch.arange(1, count + 1, device=key.device) * -0x61C8864680B583EB
    return mix(key[:, None] + counter) >> 32 & 0x7FFFFFFF


def mix(x: Tensor) -> Tensor:
    """A bijection of int64 in which each bit of the input flips about half of the output's upper bits."""
    x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    return (x ^ (x >> 27 & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
