"""The gradient of a transport plan by the implicit function theorem (Luise et al. 2018, arXiv 1805.11897).

Unrolling stores the intermediate results of every iteration and differentiates an approximate solution. At the optimum,
the derivative of the plan with respect to the cost depends only on the plan and its marginals: one linear system,
regardless of the number of iterations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

RIDGE = 1e-10
"""Relative. If the plan is block diagonal, potentials are only determined up to a constant per block."""


def implicit(plan: Tensor, cost: Tensor, epsilon: float | Tensor) -> Tensor:
    """Return the plan with its gradient with respect to `cost`, for exact, fixed marginals.

    The backward pass solves an `[m, m]` system in float64, even for fp32 plans.

    Args:
        plan: The entropic optimum for `cost` and `epsilon`, `[n, m]`. Rows and columns without mass are ignored.
        cost: `[n, m]`.
        epsilon: Entropic regularisation, above 0, in units of the cost.

    Returns:
        `[n, m]`.
    """
    found: Tensor = _Implicit.apply(cost, plan.detach(), epsilon)
    return found


class _Implicit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cost: Tensor, plan: Tensor, epsilon: float | Tensor) -> Tensor:
        ctx.save_for_backward(plan)
        ctx.epsilon = epsilon
        return plan.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        """Solve for the gradient of the cost.

        With P = exp(f + g - C / epsilon), fixed marginals r and c, and upstream gradient E:

        dE/dC = -P (E - a - b) / epsilon,  r a + P b = (P E) 1,  P'a + c b = (P E)'1.
        """
        (plan,) = ctx.saved_tensors
        p, e = plan.double(), upstream.double()
        row, column, pe = p.sum(1), p.sum(0), p * e
        row = torch.where(row > 0, row, 1)
        right_row, right_column = pe.sum(1), pe.sum(0)
        # a is eliminated. b is determined up to a constant, which the rank-one term removes.
        system = (
            torch.diag(torch.where(column > 0, column, 1) * (1 + RIDGE))
            - p.T @ (p / row[:, None])
            + torch.outer(column, column)
        )
        b = torch.linalg.solve_ex(system, right_column - p.T @ (right_row / row))[0]
        a = (right_row - p @ b) / row
        return (-(pe - p * a[:, None] - p * b) / ctx.epsilon).to(upstream.dtype), None, None
