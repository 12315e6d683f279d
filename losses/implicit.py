"""The gradient of a transport plan by the implicit function theorem (Luise et al. 2018, arXiv 1805.11897).

Unrolling keeps every iteration's intermediates and differentiates what has converged only roughly. At the optimum the
plan's dependence on the cost follows from its marginals alone: one linear system, whatever the number of iterations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

RIDGE = 1e-10
"""Relative. Where the plan falls into blocks, the potentials are free by a constant in each of them: any will do."""


def implicit(plan: Tensor, cost: Tensor, epsilon: float | Tensor) -> Tensor:
    """The plan as it is, with the gradient to `cost` that it has if its marginals are exact and held.

    plan: `[n, m]`, the entropic optimum for `cost [n, m]` at `epsilon` (above 0, the cost's unit); rows and columns
    without mass take no part. The backward solves an `[m, m]` system in float64, for fp32 plans too.
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
        """With P = exp(f + g - C / epsilon) and fixed marginals r, c: upstream E gives

        dE/dC = -P (E - a - b) / epsilon,  r a + P b = (P E) 1,  P'a + c b = (P E)'1.
        """
        (plan,) = ctx.saved_tensors
        p, e = plan.double(), upstream.double()
        row, column, pe = p.sum(1), p.sum(0), p * e
        row = torch.where(row > 0, row, 1)
        right_row, right_column = pe.sum(1), pe.sum(0)
        # a is eliminated. b is known up to a constant, which the rank-one term takes away.
        system = (
            torch.diag(torch.where(column > 0, column, 1) * (1 + RIDGE))
            - p.T @ (p / row[:, None])
            + torch.outer(column, column)
        )
        b = torch.linalg.solve_ex(system, right_column - p.T @ (right_row / row))[0]
        a = (right_row - p @ b) / row
        return (-(pe - p * a[:, None] - p * b) / ctx.epsilon).to(upstream.dtype), None, None
