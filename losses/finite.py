"""What a loss keeps from step to step stays finite: one bad batch would otherwise spoil every step after it."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def all_finite(*values: Tensor) -> Tensor:
    """Whether all numbers of all tensors are finite, as a bool scalar on their device: nothing waits for it."""
    return torch.stack([value.isfinite().all() for value in values]).all()


@torch.no_grad()
def keep_finite(*updates: tuple[Tensor, Tensor]) -> None:
    """Write to each `(buffer, new)` its new values, or to none of them if a new value is not finite."""
    finite = all_finite(*(new for _, new in updates))
    for buffer, new in updates:
        buffer.copy_(torch.where(finite, new.to(buffer.dtype), buffer))
