"""A first-in first-out queue of past features: negatives beyond the batch, without an index into the data set."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from losses.finite import all_finite


class Queue(nn.Module):
    """The last `length` rows of several row-aligned tensors (features, labels, groups) of past global batches.

    Slots are buffers, so that checkpoints hold them; `filled [length]` tells which of them hold a sample already.
    Push the gathered batch, so that all ranks hold the same queue.
    """

    filled: Tensor
    head: Tensor

    def __init__(self, length: int, **columns: tuple[int, torch.dtype]) -> None:
        """columns: name -> (width, dtype); width 0 makes a column of scalars."""
        super().__init__()
        self.length = length
        self.columns = tuple(columns)
        for name, (width, dtype) in columns.items():
            shape = (length, width) if width else (length,)
            self.register_buffer(name, torch.zeros(shape, dtype=dtype))
        self.register_buffer("filled", torch.zeros(length, dtype=torch.bool))
        self.register_buffer("head", torch.zeros((), dtype=torch.int64))

    def column(self, name: str) -> Tensor:
        """A column itself, for what autograd does not save: later pushes change it."""
        column: Tensor = getattr(self, name)
        return column

    def read(self, name: str) -> Tensor:
        """A copy of a column, for what autograd saves."""
        return self.column(name).clone()

    @torch.no_grad()
    def push(self, **rows: Tensor) -> None:
        """Append `[B, ...]` rows to every column, over the oldest ones; of more rows than slots the last are kept.

        Rows that are not all finite are left out, all of them: their step is not taken either.
        """
        count = next(iter(rows.values())).shape[0]
        kept = min(count, self.length)
        slots = (self.head + torch.arange(kept, device=self.head.device)) % self.length
        finite = all_finite(*rows.values())
        for name in self.columns:
            column: Tensor = getattr(self, name)
            column[slots] = torch.where(finite, rows[name][-kept:].detach().to(column.dtype), column[slots])
        self.filled[slots] |= finite
        self.head.add_(kept * finite).remainder_(self.length)
