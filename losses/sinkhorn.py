"""Entropic optimal transport by Sinkhorn's iterations (Cuturi 2013; Peyre and Cuturi 2019, sections 4.2 and 4.4)."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import repeat

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

LARGEST_SCALING = math.exp(30)
"""fp32 loses entries of the kernel below e^-87; with scalings up to e^30 each way, what is lost stays below e^-27."""

LONGEST_STRIDE = 8
"""Iterations between two looks at the scalings."""

LARGE_BYTES = 1 << 22
"""Kernels beyond this do not stay in the caches from one iteration to the next."""

BLOCK_BYTES = 3 << 19
"""Rows of the kernel that stay in a core's cache between the two products of an iteration."""


def sinkhorn(
    cost: Tensor,
    epsilon: float | Tensor = 0.1,
    iterations: int = 20,
    log_prior: Tensor | None = None,
    log_row: Tensor | None = None,
    log_column: Tensor | None = None,
    marginal_penalty: float | None = None,
    compiled: bool = False,
) -> Tensor:
    """The plan that minimises `<P, cost> + epsilon * KL(P || prior)` under marginals that are uniform or given.

    cost: `[..., n, m]`, any float dtype; computed in fp32 (float64 stays float64), also inside autocast.
    epsilon: above 0, in the cost's own unit. iterations: how many row and column updates; fixed, so that nothing
    waits for the device. log_prior: `[n, m]`, log of the reference plan, -inf where no mass may go; 1/(n m) without.
    log_row, log_column: logs of the marginals `[..., n]` and `[..., m]`, -inf for rows that take no part; log 1/n and
    log 1/m without. marginal_penalty: instead of holding the marginals, pay so much a unit of KL(marginal of P ||
    marginal), above 0 (Chizat et al. 2018). compiled: iterations in the log domain, fused by torch.compile, for GPUs,
    where each would be a dozen kernels. Gradients flow through the iterations if the cost asks for them.
    Returns `[..., n, m]`. Its column sums are exact unless penalised; `marginal_error` tells how far its rows are.
    Raises ValueError for numbers out of these ranges, epsilon as a tensor apart, and for a cost without an entry.
    """
    _check(cost, epsilon, iterations, marginal_penalty)
    with torch.autocast(cost.device.type, enabled=False):
        n, m = cost.shape[-2:]
        if marginal_penalty is not None and log_prior is None:
            log_prior = cost.new_full((), -math.log(n * m))  # held marginals take no notice of its mass
        log_kernel = _log_kernel(cost, epsilon, log_prior)
        free = log_row is None and log_column is None and marginal_penalty is None
        traced = compiled or torch.compiler.is_compiling()
        if free and not traced and cost.device.type == "cpu" and not log_kernel.requires_grad:
            return _by_kernel(log_kernel, lambda: _log_kernel(cost, epsilon, log_prior), iterations)
        row, column = log_kernel.new_full((n, 1), -math.log(n)), log_kernel.new_full((1, m), -math.log(m))
        if log_row is not None:
            log_kernel, row = _without(log_kernel, log_row.to(log_kernel)[..., None])
        if log_column is not None:
            log_kernel, column = _without(log_kernel, log_column.to(log_kernel)[..., None, :])
        damping = 1.0 if marginal_penalty is None else 1 / (1 + epsilon / marginal_penalty)
        solve = _fused() if compiled else _by_logarithms
        return solve(log_kernel, row, column, iterations, damping)


def _check(cost: Tensor, epsilon: float | Tensor, iterations: int, marginal_penalty: float | None) -> None:
    if cost.ndim < 2 or 0 in cost.shape:
        raise ValueError(f"sinkhorn: the cost must be [..., n, m] with n and m at least 1, not {list(cost.shape)}")
    if not isinstance(epsilon, Tensor) and not epsilon > 0:  # to look at a tensor would be to wait for the device
        raise ValueError(f"sinkhorn: epsilon must be above 0, in the cost's unit, not {epsilon}")
    if iterations < 1:
        raise ValueError(f"sinkhorn: iterations must be at least 1, not {iterations}")
    if marginal_penalty is not None and not marginal_penalty > 0:
        raise ValueError(f"sinkhorn: marginal_penalty must be above 0, or None, not {marginal_penalty}")


def _log_kernel(cost: Tensor, epsilon: float | Tensor, log_prior: Tensor | None) -> Tensor:
    """A tensor of its own, at least fp32."""
    log_kernel = cost.to(torch.promote_types(cost.dtype, torch.float32)) / -epsilon
    return log_kernel if log_prior is None else log_kernel + log_prior.to(log_kernel.dtype)


def _without(log_kernel: Tensor, marginal: Tensor) -> tuple[Tensor, Tensor]:
    """The kernel without the rows or columns of marginal -inf, and the marginal, finite."""
    none = marginal == -math.inf
    return log_kernel.masked_fill(none, -math.inf), marginal.masked_fill(none, 0.0)


def _by_logarithms(
    log_kernel: Tensor, row: Tensor, column: Tensor, iterations: int, damping: float | Tensor = 1.0
) -> Tensor:
    """The plan, stable for every kernel. Where cost / epsilon is large, fp32 leaves nothing of a marginal beside the
    potentials, so they are absorbed into the kernel, soon at first; the last update is a softmax, which needs none.
    """
    f, g = torch.zeros_like(log_kernel[..., :1]), torch.zeros_like(log_kernel[..., :1, :])
    done, stride = 0, 1
    while done < iterations:
        stride = min(stride, iterations - done)
        last, held = done + stride == iterations, isinstance(damping, float) and damping == 1
        own_f, own_g = _potentials(log_kernel, row, column, stride, damping, f, g)
        log_kernel = log_kernel + own_f
        if last and held:
            return _columns_of(log_kernel, column)
        log_kernel, f, g = log_kernel + own_g, f + own_f, g + own_g
        done, stride = done + stride, min(2 * stride, LONGEST_STRIDE)
    return log_kernel.exp()


def _potentials(
    log_kernel: Tensor,
    row: Tensor,
    column: Tensor,
    iterations: int,
    damping: float | Tensor,
    f: Tensor | float,
    g: Tensor | float,
) -> tuple[Tensor, Tensor]:
    """What so many iterations add to potentials `f [..., n, 1]`, `g [..., 1, m]`, in units of epsilon, that log K holds
    already:  f = damping * (row - logsumexp_j(log K + g)),  g = damping * (column - logsumexp_i(log K + f)).
    """
    held_f, held_g = (1 - damping) * f, (1 - damping) * g
    own_g = torch.zeros_like(log_kernel[..., :1, :])
    for _ in range(iterations):
        own_f = damping * (row - _logsumexp(log_kernel + own_g, -1)) - held_f
        own_g = damping * (column - _logsumexp(log_kernel + own_f, -2)) - held_g
    return own_f, own_g


def _columns_of(log_kernel: Tensor, column: Tensor) -> Tensor:
    """The plan whose columns have the mass `exp(column)`, shared out as the kernel says."""
    empty = log_kernel.detach().amax(-2, keepdim=True) == -math.inf
    return torch.softmax(log_kernel.masked_fill(empty, 0.0), -2) * column.exp().masked_fill(empty, 0.0)


@cache
def _fused() -> Callable[..., Tensor]:
    return torch.compile(_by_logarithms)


def _logsumexp(x: Tensor, dim: int) -> Tensor:
    """0 where all of a row is -inf: such a row's marginal is -inf too, and the two would make nan."""
    if x.requires_grad:  # masked before as well, or the gradient would be nan
        empty = x.detach().amax(dim, keepdim=True) == -math.inf
        return torch.logsumexp(x.masked_fill(empty, 0.0), dim, keepdim=True).masked_fill(empty, 0.0)
    total = torch.logsumexp(x, dim, keepdim=True)
    return total.masked_fill(total == -math.inf, 0.0)


def _by_kernel(kernel: Tensor, log_kernel: Callable[[], Tensor], iterations: int) -> Tensor:
    """The same plan under uniform marginals with products instead of exponentials (Schmitzer 2019, arXiv 1610.06519).

    With potentials absorbed into it, K is of moderate size, and an iteration is  u = 1 / K v,  v = 1 / K'u: the
    marginals differ by a factor only, which is left for the end. Where u or v have left their range, the iterations
    since they were last looked at are taken again: one by logarithms, which is absorbed, then by products.

    kernel: log K, which becomes the plan in its place; log_kernel: makes log K once more, which is seldom needed.
    """
    m = kernel.shape[-1]
    row, column = torch.zeros_like(kernel[..., :1]), torch.zeros_like(kernel[..., :1, :])
    f, g = -kernel.amax(-1, keepdim=True).clamp(min=torch.finfo(kernel.dtype).min), column
    kernel.add_(f).exp_()
    u, v = torch.ones_like(f), torch.ones_like(g)
    done, stride = 0, 1
    while done < iterations:
        stride = min(stride, iterations - done)
        next_u, next_v = _scalings(kernel, v, stride)
        if _moderate(next_u) and _moderate(next_v):
            u, v = next_u, next_v
            done, stride = done + stride, min(2 * stride, LONGEST_STRIDE)
            continue
        g = g + v.log()
        kernel = log_kernel().add_(g)
        f, more = _potentials(kernel, row, column, 1, 1.0, 0.0, 0.0)
        kernel.add_(f).add_(more).exp_()
        g = g + more
        u, v = torch.ones_like(f), torch.ones_like(g)
        done, stride = done + 1, 1
    return kernel.mul_(u).mul_(v / m)


def _scalings(kernel: Tensor, v: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """`[..., n, 1]`, `[..., 1, m]` after so many iterations."""
    if kernel.ndim == 2 and kernel.nbytes > LARGE_BYTES:
        return _scalings_of_large(kernel.numpy(), v[0].numpy(), iterations)
    for _ in range(iterations):
        u = (kernel @ v.mT).reciprocal_()
        v = (u.mT @ kernel).reciprocal_()
    return u, v


def _scalings_of_large(kernel: np.ndarray, v: np.ndarray, iterations: int) -> tuple[Tensor, Tensor]:
    """The same, reading the kernel from memory once an iteration: every thread takes its rows block by block, and a
    block is still in its core's cache for the second product.

    By NumPy, whose products let other threads run and are the faster ones for a block; its own threads would split the
    second product by columns, across what the cores have in their caches.
    """
    threads = torch.get_num_threads()
    u, columns = np.empty(len(kernel), kernel.dtype), np.empty((threads, len(v)), kernel.dtype)
    rows = max(BLOCK_BYTES // kernel[0].nbytes, 1)
    blocks = [(kernel[start : start + rows], u[start : start + rows]) for start in range(0, len(u), rows)]
    parts = [blocks[thread::threads] for thread in range(threads)]
    with _blas().limit(limits=1), ThreadPoolExecutor(threads) as pool:
        for _ in range(iterations):
            list(pool.map(_one_pass, parts, repeat(v), columns))
            with np.errstate(all="ignore"):  # what leaves the range is seen, and taken again
                v = np.reciprocal(columns.sum(0))
    return torch.from_numpy(u)[:, None], torch.from_numpy(v)[None]


def _one_pass(blocks: list[tuple[np.ndarray, np.ndarray]], v: np.ndarray, column: np.ndarray) -> None:
    """u = 1 / K v of some rows, and what they give to `column`, K'u."""
    column.fill(0)
    with np.errstate(all="ignore"):
        for block, u in blocks:
            np.reciprocal(np.dot(block, v, out=u), out=u)
            column += u @ block


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


def _moderate(scaling: Tensor) -> bool:
    least, largest = torch.aminmax(scaling)
    return least.item() > 1 / LARGEST_SCALING and largest.item() < LARGEST_SCALING


def marginal_error(plan: Tensor, row: Tensor | None = None) -> Tensor:
    """The mass that a plan `[..., n, m]` puts into wrong rows, `sum_i |sum_j P_ij - r_i|`, in [0, 2]; r is 1/n or
    `row [..., n]`."""
    return (plan.sum(-1) - (1 / plan.shape[-2] if row is None else row)).abs().sum(-1)
