"""Sums over the rows of matrices between large batches, of which only some rows exist at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LARGEST_WHOLE = 4096
"""Global batches beyond it hold no matrix of all their pairs, where a loss can do without."""

BLOCK_ELEMENTS = 1 << 23
"""Entries of such a matrix that exist at a time."""


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """The rows of a `[rows, columns]` matrix, as many at a time as BLOCK_ELEMENTS allows."""
    step = max(BLOCK_ELEMENTS // columns, 1)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def sum_by_rows(term: Callable[[slice], Tensor], rows: int, columns: int) -> Tensor:
    """`term(all rows)` for a term that is a sum over the rows of a `[rows, columns]` matrix.

    Beyond LARGEST_WHOLE rows block by block, each computed again in the backward: what the term reads must not have
    changed by then.
    """
    if rows <= LARGEST_WHOLE:
        return term(slice(0, rows))
    parts = [
        checkpoint(term, block, use_reentrant=False, preserve_rng_state=False) for block in row_blocks(rows, columns)
    ]
    return torch.stack(parts).sum()
