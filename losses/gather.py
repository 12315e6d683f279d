"""Gather tensors from all ranks into the global batch, with gradient."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        return _all_gather(local)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # autograd may share it
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


class _SumOfShares(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: Tensor) -> Tensor:
        return sum_over_ranks(share)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return ranks() * gradients[0]


def _all_gather(local: Tensor) -> Tensor:
    local = local.contiguous()
    parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, local)
    return torch.cat(parts)


def ranks() -> int:
    """The number of training processes (world size); 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The rank of this process; 0 without a process group."""
    return dist.get_rank() if ranks() > 1 else 0


def gather(local: Tensor) -> Tensor:
    """Concatenate a tensor over all ranks in rank order, with gradient. The identity on a single rank.

    Every rank then computes the same loss of the global batch. The backward pass sums the gradients over ranks.
    Together with DDP's averaging, parameters get exactly the gradient of a single process with the whole batch.

    Args:
        local: `[B, ...]`, with the same B on every rank.

    Returns:
        `[ranks * B, ...]`.
    """
    if ranks() == 1:
        return local
    gathered: Tensor = _GatherWithGradient.apply(local) if local.requires_grad else _all_gather(local)
    return gathered


def sum_of_shares(share: Tensor) -> Tensor:
    """Sum the parts of a global loss that each rank has computed, with gradient.

    In the backward pass, each part gets the gradient of the sum times the number of ranks, which DDP's averaging
    cancels.

    Args:
        share: The part of this rank.

    Returns:
        The sum, on every rank.
    """
    total: Tensor = share if ranks() == 1 else _SumOfShares.apply(share)
    return total


def least_over_ranks(local: Tensor) -> Tensor:
    """Elementwise minimum over ranks, without gradient."""
    least = local.detach().clone()
    if ranks() > 1:
        dist.all_reduce(least, dist.ReduceOp.MIN)
    return least


def sum_over_ranks(local: Tensor) -> Tensor:
    """Sum over ranks, without gradient."""
    total = local.detach().clone()
    if ranks() > 1:
        dist.all_reduce(total)
    return total
