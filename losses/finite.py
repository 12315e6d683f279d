"""Keeps the state of a loss finite, since a single bad batch would otherwise corrupt all later steps."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def all_finite(*values: Tensor) -> Tensor:
    """Check that all values of all tensors are finite.

    Returns:
        A bool scalar on the device of the tensors, without synchronising with the device.
    """
    return torch.stack([value.isfinite().all() for value in values]).all()


@torch.no_grad()
def keep_finite(*updates: tuple[Tensor, Tensor]) -> None:
    """Update buffers, unless a new value is not finite.

    Args:
        updates: Pairs of a buffer and its new value. Either all of them are written or none.
    """
    finite = all_finite(*(new for _, new in updates))
    for buffer, new in updates:
        buffer.copy_(torch.where(finite, new.to(buffer.dtype), buffer))
