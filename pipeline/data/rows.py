"""Take some of the samples of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from losses import Features


def take_rows(x: Any, rows: slice | list[int]) -> Any:
    """Take samples from all tensors, lists of strings and features in a batch.

    Args:
        x: A batch, or a part of it.
        rows: The samples, as a slice or by their indices.
    """
    if isinstance(x, Tensor):
        return x[rows]
    if isinstance(x, Features):
        logits = None if x.logits is None else x.logits[rows]
        return Features(x.pooled[rows], [m[rows] for m in x.maps], logits)
    if isinstance(x, Mapping):
        return {name: take_rows(value, rows) for name, value in x.items()}
    if isinstance(x, list) and x and isinstance(x[0], str):
        return x[rows] if isinstance(rows, slice) else [x[row] for row in rows]
    return [take_rows(value, rows) for value in x]


def length(batch: Any) -> int:
    """The number of samples of a batch."""
    x = batch["student"] if isinstance(batch, Mapping) and "student" in batch else batch
    while not isinstance(x, Tensor):
        x = next(iter(x.values() if isinstance(x, Mapping) else x))
    return len(x)
