"""Transport between large batches in blocks of rows: memory grows only linearly with the batch.

Each rank computes the rows of its local samples. Ranks only exchange column sums, one vector per iteration.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from losses.base import full_precision
from losses.gather import gather, least_over_ranks, ranks, sum_over_ranks
from losses.rows import own_rows, row_blocks

SMALLEST_SUM = 1e-30
"""Column sums below this are recomputed in the log domain. fp32 loses entries below e^-87 of the row maximum."""


def transport_cost(
    x: Tensor,
    y: Tensor,
    epsilon: float = 0.1,
    iterations: int = 20,
    diagonal_odds: float = 1.0,
    carried: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Compute the cost of the plan of `sinkhorn` without storing the plan, `sum_ij P_ij (1 - <x_i, y_j>)`.

    The gradient is that of the cost for fixed P (envelope theorem). The other outputs have no gradient.

    Args:
        x: `[n, d]`, L2-normalised, the global batch, identical on all ranks. Computed in fp32 or float64.
        y: `[m, d]`, as x.
        epsilon: Entropic regularisation, in units of the cost.
        iterations: Number of Sinkhorn iterations.
        diagonal_odds: Prior odds of a true pair against any other pair, at least 1. For the anchored prior `(1 - a) I/n
            + a/n^2`, they are 1 + n (1 - a) / a.
        carried: Features `[m, D]` to multiply by the plan, or None.

    Returns:
        The cost; the mass on the diagonal of the plan; its marginal error; and `P carried`, `[n, D]`, or None.
    """
    cost, diagonal, error, brought = _TransportCost.apply(
        full_precision(x), full_precision(y), epsilon, iterations, diagonal_odds, carried
    )
    return cost, diagonal, error, brought


class _TransportCost(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        epsilon: float,
        iterations: int,
        diagonal_odds: float,
        carried: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        problem = _Problem(x, y, epsilon, math.log(diagonal_odds))
        f, g = problem.potentials(iterations)
        gradient_x, gradient_y = torch.zeros_like(x), torch.zeros_like(y)
        mass, diagonal, error = x.new_zeros(()), x.new_zeros(()), x.new_zeros(())
        carried = None if carried is None else carried.to(x.dtype)
        brought = None if carried is None else x.new_empty(len(x), carried.shape[1])
        for rows, log_plan in problem.blocks(g):
            plan = log_plan.add_(f[rows, None]).exp_()
            gradient_x[rows] = -plan @ y
            gradient_y.addmm_(plan.T, x[rows], alpha=-1)
            in_row = plan.sum(1)
            mass += in_row.sum()
            diagonal += plan.diagonal(rows.start).sum() if rows.start < len(y) else 0
            error += (in_row - 1 / len(x)).abs().sum()
            if carried is not None and brought is not None:
                brought[rows] = plan @ carried
        cost = mass + (gradient_x * x).sum()
        cost, diagonal, error = (part.clone() for part in sum_over_ranks(torch.stack([cost, diagonal, error])))
        brought = None if brought is None else gather(brought[own_rows(len(x))])
        ctx.save_for_backward(gradient_x, gradient_y)
        ctx.mark_non_differentiable(diagonal, error, *(() if brought is None else (brought,)))
        return cost, diagonal, error, brought

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient_x, gradient_y = ctx.saved_tensors
        scale = ranks() * gradients[0]  # as in `sum_of_shares`
        return scale * gradient_x, scale * gradient_y, None, None, None, None


class _Problem:
    """The kernel in blocks of rows, as `log K + g`. The constant 1 of the cost is absorbed by the potentials."""

    def __init__(self, x: Tensor, y: Tensor, epsilon: float, log_odds: float) -> None:
        self.x, self.y, self.epsilon, self.log_odds = x, y, epsilon, log_odds

    def blocks(self, g: Tensor) -> Iterator[tuple[slice, Tensor]]:
        for rows in row_blocks(len(self.x), len(self.y)):
            block = torch.addmm(g, self.x[rows], self.y.T, alpha=1 / self.epsilon)
            if self.log_odds and rows.start < len(self.y):
                block.diagonal(rows.start).add_(self.log_odds)
            yield rows, block

    def potentials(self, iterations: int) -> tuple[Tensor, Tensor]:
        """Potentials of rows and columns in units of epsilon.

        Each iteration is one pass over the kernel. If a column sum has underflowed, all iterations are repeated with
        two passes each. This is checked only once, since reading the sums synchronises with the device.
        """
        f, g, least = self._iterate(iterations, by_logarithms=False)
        fine = least_over_ranks((least > SMALLEST_SUM).float())  # False for nan, which results from a sum of 0
        if not fine:  # a minimum over ranks, since all must take the same branch
            f, g, _ = self._iterate(iterations, by_logarithms=True)
        return f, g

    def _iterate(self, iterations: int, by_logarithms: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The potentials and the smallest column sum."""
        g, least = self.y.new_zeros(len(self.y)), self.y.new_full((), math.inf)
        for _ in range(iterations):
            f, column = self._sums(g)
            least = torch.minimum(least, column.min())
            log_column = self._log_column(f, g) if by_logarithms else column.log()
            g = g - math.log(len(self.y)) - log_column
        return f, g, least

    def _sums(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Potentials of the rows of this rank, and the column sums of all ranks under these."""
        n = len(self.x)
        f, column = torch.zeros_like(self.x[:, 0]), torch.zeros_like(g)
        for rows, block in self.blocks(g):
            largest = block.amax(1, keepdim=True)
            kernel = block.sub_(largest).exp_()
            total = kernel.sum(1)
            f[rows] = -math.log(n) - largest[:, 0] - total.log()
            column.addmv_(kernel.T, 1 / (n * total))
        return f, sum_over_ranks(column)

    def _log_column(self, f: Tensor, g: Tensor) -> Tensor:
        total = torch.full_like(g, -math.inf)
        for rows, block in self.blocks(g):
            total = torch.logaddexp(total, torch.logsumexp(block.add_(f[rows, None]), 0))
        largest = -least_over_ranks(-total)
        return largest + sum_over_ranks((total - largest).exp()).log()
