"""A FIFO queue of past features: negatives beyond the batch that need no index into the training set."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from losses.finite import all_finite


class Queue(nn.Module):
    """The last rows of row-aligned tensors (features, labels, groups) of past global batches.

    Slots are buffers, so they are saved in checkpoints. `filled [length]` marks slots that have been written. Push the
    gathered batch: all ranks then have the same queue.

    Args:
        length: Number of slots.
        columns: Name -> (width, dtype); width 0 for scalars.
    """

    filled: Tensor
    head: Tensor

    def __init__(self, length: int, **columns: tuple[int, torch.dtype]) -> None:
        super().__init__()
        self.length = length
        self.columns = tuple(columns)
        for name, (width, dtype) in columns.items():
            shape = (length, width) if width else (length,)
            self.register_buffer(name, torch.zeros(shape, dtype=dtype))
        self.register_buffer("filled", torch.zeros(length, dtype=torch.bool))
        self.register_buffer("head", torch.zeros((), dtype=torch.int64))

    def column(self, name: str) -> Tensor:
        """A column itself (not a copy), for use without autograd, since later pushes change it."""
        column: Tensor = getattr(self, name)
        return column

    def read(self, name: str) -> Tensor:
        """A copy of a column, for use with autograd."""
        return self.column(name).clone()

    @torch.no_grad()
    def push(self, **rows: Tensor) -> None:
        """Append rows to every column, replacing the oldest ones.

        If there are more rows than slots, the last rows are kept. If any value is not finite, no row is added, since
        the training step is also skipped.

        Args:
            rows: Column -> values, `[B, ...]`.
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
