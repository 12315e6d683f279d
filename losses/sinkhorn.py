"""Entropic optimal transport by Sinkhorn's iterations in the log domain (Cuturi 2013; Peyre and Cuturi 2019, 4.4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinkhorn(cost: Tensor, epsilon: float = 0.1, iterations: int = 20, log_prior: Tensor | None = None) -> Tensor:
    """The plan that minimises `<P, cost> + epsilon * KL(P || prior)` under uniform marginals 1/n and 1/m.

    cost: `[..., n, m]`, any float dtype; computed in fp32 (float64 stays float64), also inside autocast.
    epsilon: above 0, in the cost's own unit. iterations: how many row and column updates; fixed, so that nothing
    waits for the device. log_prior: `[n, m]`, log of the reference plan, -inf where no mass may go; uniform without.
    Returns `[..., n, m]` that sums to 1. Its column sums are exact; `marginal_error` tells how far its rows are.

    With K = prior * exp(-cost / epsilon), it repeats  f = log 1/n - logsumexp_j(log K + g)  and
    g = log 1/m - logsumexp_i(log K + f).
    """
    with torch.autocast(cost.device.type, enabled=False):
        log_kernel = -cost.to(torch.promote_types(cost.dtype, torch.float32)) / epsilon
        if log_prior is not None:
            log_kernel = log_kernel + log_prior.to(log_kernel.dtype)
        n, m = cost.shape[-2:]
        g = log_kernel.new_zeros((*cost.shape[:-2], 1, m))
        for _ in range(iterations):
            f = -math.log(n) - torch.logsumexp(log_kernel + g, dim=-1, keepdim=True)
            g = -math.log(m) - torch.logsumexp(log_kernel + f, dim=-2, keepdim=True)
        return torch.exp(log_kernel + f + g)


def marginal_error(plan: Tensor) -> Tensor:
    """The total mass that a plan `[..., n, m]` puts into wrong rows, `sum_i |sum_j P_ij - 1/n|`, in [0, 2]."""
    return (plan.sum(-1) - 1 / plan.shape[-2]).abs().sum(-1)
