"""Sums over the rows of matrices between large batches: each rank takes its samples' rows, and holds some at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from losses.gather import rank, ranks, sum_of_shares

LARGEST_WHOLE = 4096
"""Global batches beyond it hold no matrix of all their pairs, where a loss can do without."""

BLOCK_ELEMENTS = 1 << 23
"""Entries of such a matrix that exist at a time."""


def own_rows(rows: int) -> slice:
    """Those of this rank's samples, of the rows of the global batch; ValueError if ranks cannot have equally many."""
    share, left = divmod(rows, ranks())
    if left:
        raise ValueError(f"{rows} rows are not the global batch of {ranks()} ranks: each must give equally many")
    return slice(rank() * share, (rank() + 1) * share)


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """This rank's rows of a `[rows, columns]` matrix, as many at a time as BLOCK_ELEMENTS allows."""
    own, step = own_rows(rows), max(BLOCK_ELEMENTS // columns, 1)
    for start in range(own.start, own.stop, step):
        yield slice(start, min(start + step, own.stop))


def sum_by_rows(term: Callable[[slice], Tensor], rows: int, columns: int) -> Tensor:
    """`term(all rows)` for a term that is a sum over the rows of a `[rows, columns]` matrix of the global batch.

    Beyond LARGEST_WHOLE rows every rank sums its own, block by block, each computed again in the backward: what the
    term reads must not have changed by then.
    """
    if rows <= LARGEST_WHOLE:
        return term(slice(0, rows))
    parts = [
        checkpoint(term, block, use_reentrant=False, preserve_rng_state=False) for block in row_blocks(rows, columns)
    ]
    return sum_of_shares(torch.stack(parts).sum())
