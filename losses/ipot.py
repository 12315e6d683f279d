"""Unregularised optimal transport by proximal point iterations: IPOT (Xie et al. 2018, arXiv 1802.04307, algorithm 1).

    P(t+1) = argmin_P <P, C> + beta KL(P || P(t))  under the marginals r and c,  P(0) = 1 1'

Each of these problems is solved approximately, by one Sinkhorn iteration (L = 1 in the paper). With G = exp(-C / beta):

    Q = G * P(t), elementwise      (1)
    a = r / (Q b)                   (2)  b of the previous iteration, initially 1 where c > 0
    b = c / (Q' a)                  (3)
    P(t+1) = diag(a) Q diag(b)      (4)

P(t) converges to an optimum of the linear programme for every beta: beta only affects the speed, whereas the epsilon of
`sinkhorn` affects the result. Entries outside the optimum decay like exp(-t / beta), below the range of fp32, so all
computations are in the log domain.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEAST_LOG = -1e4
"""Represents the log of zero mass. Its exponential is 0, and unlike with -inf, differences are not nan."""


@torch.no_grad()
def ipot(
    cost: Tensor,
    beta: float = 0.5,
    iterations: int = 50,
    log_row: Tensor | None = None,
    log_column: Tensor | None = None,
) -> Tensor:
    """Compute a plan that minimises `<P, cost>` under uniform or given marginals.

    Args:
        cost: `[..., n, m]`, any float dtype. Computed in fp32 (float64 is kept), also inside autocast.
        beta: Weight of the proximal term, above 0, in units of the cost. Smaller is faster; 0.5 suits `1 - cos`.
        iterations: Number of proximal steps, at least 1; usually 20 to 50.
        log_row: Log of the marginal r, `[..., n]`, -inf for excluded rows; by default log 1/n.
        log_column: Log of the marginal c, `[..., m]`, -inf for excluded columns; by default log 1/m.

    Returns:
        `[..., n, m]`, without gradient. Column sums are exact; `losses.sinkhorn.marginal_error` measures the error of
        the rows.

    Raises:
        ValueError: The cost is empty, or `beta` or `iterations` is out of range.
    """
    if cost.ndim < 2 or 0 in cost.shape:
        raise ValueError(f"ipot: the cost must be [..., n, m] with n and m at least 1, not {list(cost.shape)}")
    if not beta > 0:
        raise ValueError(f"ipot: beta must be above 0 (in units of the cost), not {beta}")
    if iterations < 1:
        raise ValueError(f"ipot: iterations must be at least 1, not {iterations}")
    log_kernel = cost.to(torch.promote_types(cost.dtype, torch.float32)) / -beta  # log G
    n, m = cost.shape[-2:]
    row, column = log_kernel.new_full((n, 1), -math.log(n)), log_kernel.new_full((1, m), -math.log(m))
    if log_row is not None:
        row = log_row.to(log_kernel).clamp(min=LEAST_LOG)[..., None]
    if log_column is not None:
        column = log_column.to(log_kernel).clamp(min=LEAST_LOG)[..., None, :]
    log_plan = torch.zeros_like(log_kernel)
    log_b = torch.zeros_like(column).masked_fill(column <= LEAST_LOG, LEAST_LOG)
    for _ in range(iterations):
        log_q = log_plan.add_(log_kernel)  # (1)
        log_a = row - torch.logsumexp(log_q + log_b, -1, keepdim=True)  # (2)
        log_b = column - torch.logsumexp(log_q + log_a, -2, keepdim=True)  # (3)
        log_plan = log_q.add_(log_a).add_(log_b)  # (4)
    return log_plan.exp_()
