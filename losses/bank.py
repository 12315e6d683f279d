"""A memory bank with one unit vector per training sample, and the sampling of negatives from it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losses.finite import all_finite

CHUNK = 1 << 24
"""Number of elements of the largest intermediate tensor: 64 MiB in fp32."""

DENSE = 100
"""Multiplying by the whole bank is as fast if it has at most this many times as many rows as are read."""


class Bank(nn.Module):
    """A memory bank `rows [N, dim]`. An update blends a row with the new vector of its sample.

    The bank is constant for autograd. Gathered rows `[B, K, dim]` are never materialised: either all N rows are
    multiplied at once and K of the products are selected, or the K rows are read for a few samples at a time.

    Args:
        samples: N, the size of the training set.
        dim: Size of a row. Rows are initialised from U(-1, 1) / sqrt(dim / 3).
        momentum: Weight of the old row in an update.
    """

    rows: Tensor

    def __init__(self, samples: int, dim: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        bound = (3 / dim) ** 0.5
        self.register_buffer("rows", torch.empty(samples, dim).uniform_(-bound, bound))

    @torch.no_grad()
    def similarity(self, x: Tensor, index: Tensor) -> Tensor:
        """Inner products with selected rows, `<x_i, rows[index_ij]>`.

        Args:
            x: `[B, dim]`.
            index: Row indices, `[B, K]`.

        Returns:
            `[B, K]`.
        """
        rows = self.rows.to(x.dtype)
        parts = zip(*self._chunks(x, index), strict=True)
        if self._dense(index):
            return torch.cat([(a @ rows.T).gather(1, i) for a, i in parts])
        return torch.cat([(rows[i] @ a[:, :, None])[:, :, 0] for a, i in parts])

    @torch.no_grad()
    def combine(self, weight: Tensor, index: Tensor) -> Tensor:
        """Weighted sums of selected rows, `sum_j weight_ij rows[index_ij]`: the gradient of `similarity`.

        Args:
            weight: `[B, K]`.
            index: Row indices, `[B, K]`.

        Returns:
            `[B, dim]`.
        """
        rows = self.rows.to(weight.dtype)
        if not self._dense(index):
            return F.embedding_bag(index, rows, per_sample_weights=weight, mode="sum")
        parts = zip(*self._chunks(weight, index), strict=True)
        return torch.cat([w.new_zeros(len(w), len(rows)).scatter_add_(1, i, w) @ rows for w, i in parts])

    @torch.no_grad()
    def update(self, x: Tensor, index: Tensor) -> None:
        """Blend rows with new vectors and normalise them. Vectors that are not finite are skipped.

        Args:
            x: New vectors, `[B, dim]`.
            index: Row indices, `[B]`. If an index occurs twice, the last vector is used.
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
    """For each position of `index`, find the last position with the same value.

    With these positions, the result of a write does not depend on the order of its elements.

    Args:
        index: `[B]`, values below `samples`.
        samples: Size of the training set.

    Returns:
        Positions, int64 `[B]`.
    """
    last = index.new_zeros(samples)
    return last.scatter_reduce_(0, index, torch.arange(len(index), device=index.device), "amax")[index]


def draw_negatives(index: Tensor, labels: Tensor, count: int, key: Tensor) -> Tensor:
    """Draw negatives for each sample.

    The sample itself and all samples with the same known label are excluded. If all samples have the same label, only
    the sample itself is excluded. Each of the n remaining samples has the same probability count / n: from a random
    start, they are divided into `count` consecutive segments, and one sample is drawn from each segment. If n >= count,
    there are no duplicates.

    Args:
        index: The samples, `[B]`.
        labels: Labels of the training set, `[N]`, -1 for unknown.
        count: Number of negatives per sample.
        key: Random keys, int64 `[B]`.

    Returns:
        Indices of the negatives, `[B, count]`.
    """
    label = labels[index]
    in_order, order = labels.sort(stable=True)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(labels), device=labels.device))
    first, stop = torch.searchsorted(in_order, label), torch.searchsorted(in_order, label, right=True)
    by_label = (label >= 0) & (stop - first < len(labels))
    first = torch.where(by_label, first, place[index])[:, None]  # first excluded position in label order
    left_out = torch.where(by_label, stop - first[:, 0], 1)[:, None]

    n = len(labels) - left_out
    bits = random_bits(key, count + 1)  # [B, count + 1], 31 bits each
    cut = torch.arange(count + 1, device=index.device) * n // count
    low, width = cut[:, :-1], cut.diff(dim=1)
    chosen = low + (bits[:, :-1] * width >> 31) + (bits[:, -1:] * n >> 31)
    chosen -= n * (chosen >= n)
    chosen += left_out * (chosen >= first)
    return order[chosen]


def random_bits(key: Tensor, count: int) -> Tensor:
    """Draw 31 random bits with a counter-based generator, as a function of the key and the column.

    torch's generators are not used: they would have to draw the numbers of all ranks on every rank, would synchronise
    with the device, and cannot be compiled. Counters are multiplied by the golden ratio and mixed twice, as in
    SplitMix64 (Steele et al. 2014).

    Args:
        key: int64 `[B]`.
        count: Number of columns.

    Returns:
        int64 `[B, count]`, in [0, 2^31).
    """
    counter = torch.arange(1, count + 1, device=key.device) * -0x61C8864680B583EB
    return mix(key[:, None] + counter) >> 32 & 0x7FFFFFFF


def mix(x: Tensor) -> Tensor:
    """A bijection of int64 in which each input bit flips about half of the upper output bits."""
    x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    return (x ^ (x >> 27 & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
