"""Sums over rows of matrices between large batches: each rank computes its local rows, in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from losses.gather import rank, ranks, sum_of_shares

LARGEST_WHOLE = 4096
"""For global batches larger than this, losses avoid storing a matrix of all pairs if possible."""

BLOCK_ELEMENTS = 1 << 23
"""Number of elements of such a matrix in memory at once."""


def own_rows(rows: int) -> slice:
    """The rows of this rank among those of the global batch.

    Raises:
        ValueError: The number of rows is not divisible by the number of ranks.
    """
    share, left = divmod(rows, ranks())
    if left:
        raise ValueError(
            f"a global batch of {rows} rows is not divisible by {ranks()} ranks; all must have the same number"
        )
    return slice(rank() * share, (rank() + 1) * share)


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Iterate over the rows of this rank of a `[rows, columns]` matrix in blocks of about BLOCK_ELEMENTS elements."""
    own, step = own_rows(rows), max(BLOCK_ELEMENTS // columns, 1)
    for start in range(own.start, own.stop, step):
        yield slice(start, min(start + step, own.stop))


def sum_by_rows(term: Callable[[slice], Tensor], rows: int, columns: int) -> Tensor:
    """Evaluate a term that is a sum over the rows of a matrix of the global batch.

    For more than LARGEST_WHOLE rows, each rank sums its local rows block by block and recomputes each block in the
    backward pass. The inputs of the term must not change until then.

    Args:
        term: Function from a slice of rows to their sum.
        rows: Number of rows of the matrix.
        columns: Number of columns of the matrix.

    Returns:
        `term(all rows)`, a scalar.
    """
    if rows <= LARGEST_WHOLE:
        return term(slice(0, rows))
    parts = [
        checkpoint(term, block, use_reentrant=False, preserve_rng_state=False) for block in row_blocks(rows, columns)
    ]
    return sum_of_shares(torch.stack(parts).sum())
