"""Entropic optimal transport by Sinkhorn iterations (Cuturi 2013; Peyre and Cuturi 2019, sections 4.2 and 4.4).

There are three implementations of the same iteration: products with the kernel, which is fastest, on the CPU without
gradient and with uniform marginals (`_by_kernel`); the log domain in all other cases (`_by_logarithms`); and the log
domain compiled by torch.compile for GPUs (`_fused`).
"""

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
"""fp32 loses kernel entries below e^-87. With scalings up to e^30 on each side, lost entries are below e^-27."""

LONGEST_STRIDE = 8
"""Maximum number of iterations between two checks of the scalings."""

LARGE_BYTES = 1 << 22
"""Kernels larger than this do not stay in the CPU caches between iterations."""

BLOCK_BYTES = 3 << 19
"""Size of a block of rows that stays in the cache of a core between the two products of an iteration."""


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
    """Compute the plan that minimises `<P, cost> + epsilon * KL(P || prior)` under uniform or given marginals.

    Args:
        cost: `[..., n, m]`, any float dtype. Computed in fp32 (float64 is kept), also inside autocast. Gradients flow
            through the iterations if it requires them.
        epsilon: Entropic regularisation, above 0, in units of the cost.
        iterations: Number of row and column updates, fixed to avoid synchronisation with the device.
        log_prior: Log of the reference plan, `[n, m]`, -inf for forbidden entries; by default log 1/(n m).
        log_row: Log of the row marginal, `[..., n]`, -inf for excluded rows; by default log 1/n.
        log_column: Log of the column marginal, `[..., m]`, -inf for excluded columns; by default log 1/m.
        marginal_penalty: Instead of fixing the marginals, penalise KL(marginal of P || marginal) with this weight,
            above 0 (Chizat et al. 2018).
        compiled: Fuse the iterations in the log domain with torch.compile. Use it on GPUs, where each iteration would
            otherwise launch a dozen kernels.

    Returns:
        `[..., n, m]`. Column sums are exact unless penalised; `marginal_error` measures the error of the rows.

    Raises:
        ValueError: The cost is empty, or a number is out of range. An epsilon that is a tensor is not checked.
    """
    _check(cost, epsilon, iterations, marginal_penalty)
    with torch.autocast(cost.device.type, enabled=False):
        n, m = cost.shape[-2:]
        if marginal_penalty is not None and log_prior is None:
            log_prior = cost.new_full((), -math.log(n * m))  # with fixed marginals, the mass of the prior is irrelevant
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
    if not isinstance(epsilon, Tensor) and not epsilon > 0:  # reading a tensor would synchronise with the device
        raise ValueError(f"sinkhorn: epsilon must be above 0 (in units of the cost), not {epsilon}")
    if iterations < 1:
        raise ValueError(f"sinkhorn: iterations must be at least 1, not {iterations}")
    if marginal_penalty is not None and not marginal_penalty > 0:
        raise ValueError(f"sinkhorn: marginal_penalty must be above 0, or None, not {marginal_penalty}")


def _log_kernel(cost: Tensor, epsilon: float | Tensor, log_prior: Tensor | None) -> Tensor:
    """The log kernel as a new tensor, at least fp32."""
    log_kernel = cost.to(torch.promote_types(cost.dtype, torch.float32)) / -epsilon
    return log_kernel if log_prior is None else log_kernel + log_prior.to(log_kernel.dtype)


def _without(log_kernel: Tensor, marginal: Tensor) -> tuple[Tensor, Tensor]:
    """The kernel with rows or columns of marginal -inf masked, and the marginal made finite."""
    none = marginal == -math.inf
    return log_kernel.masked_fill(none, -math.inf), marginal.masked_fill(none, 0.0)


def _by_logarithms(
    log_kernel: Tensor, row: Tensor, column: Tensor, iterations: int, damping: float | Tensor = 1.0
) -> Tensor:
    """Compute the plan in the log domain, which is stable for every kernel.

    If cost / epsilon is large, fp32 loses the marginals when they are added to the potentials. Potentials are therefore
    absorbed into the kernel, more often at the beginning. The last update is a softmax, which needs no potentials.
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
    """The increments of the potentials `f [..., n, 1]`, `g [..., 1, m]` after some iterations, in units of epsilon.

    The potentials themselves are already part of log K:  f = damping * (row - logsumexp_j(log K + g)), g = damping *
    (column - logsumexp_i(log K + f)).
    """
    held_f, held_g = (1 - damping) * f, (1 - damping) * g
    own_g = torch.zeros_like(log_kernel[..., :1, :])
    for _ in range(iterations):
        own_f = damping * (row - _logsumexp(log_kernel + own_g, -1)) - held_f
        own_g = damping * (column - _logsumexp(log_kernel + own_f, -2)) - held_g
    return own_f, own_g


def _columns_of(log_kernel: Tensor, column: Tensor) -> Tensor:
    """The plan with column sums `exp(column)`, each distributed in proportion to the kernel."""
    empty = log_kernel.detach().amax(-2, keepdim=True) == -math.inf
    return torch.softmax(log_kernel.masked_fill(empty, 0.0), -2) * column.exp().masked_fill(empty, 0.0)


@cache
def _fused() -> Callable[..., Tensor]:
    return torch.compile(_by_logarithms)


def _logsumexp(x: Tensor, dim: int) -> Tensor:
    """logsumexp, but 0 if all entries are -inf: such a row also has a marginal of -inf, and both would give nan."""
    if x.requires_grad:  # mask before as well; otherwise, the gradient is nan
        empty = x.detach().amax(dim, keepdim=True) == -math.inf
        return torch.logsumexp(x.masked_fill(empty, 0.0), dim, keepdim=True).masked_fill(empty, 0.0)
    total = torch.logsumexp(x, dim, keepdim=True)
    return total.masked_fill(total == -math.inf, 0.0)


def _by_kernel(kernel: Tensor, log_kernel: Callable[[], Tensor], iterations: int) -> Tensor:
    """Compute the same plan for uniform marginals by products (Schmitzer 2019, arXiv 1610.06519).

    With absorbed potentials, K has moderate values, and an iteration is  u = 1 / K v,  v = 1 / K'u. The marginals only
    affect a factor, which is applied at the end. If u or v leaves its range, the iterations since the last check are
    repeated: one in the log domain, which is absorbed, and the others by products.

    kernel: log K, overwritten by the plan. log_kernel: recomputes log K, which is rarely needed.
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
    """Scalings `[..., n, 1]` and `[..., 1, m]` after a number of iterations."""
    if kernel.ndim == 2 and kernel.nbytes > LARGE_BYTES:
        return _scalings_of_large(kernel.numpy(), v[0].numpy(), iterations)
    for _ in range(iterations):
        u = (kernel @ v.mT).reciprocal_()
        v = (u.mT @ kernel).reciprocal_()
    return u, v


def _scalings_of_large(kernel: np.ndarray, v: np.ndarray, iterations: int) -> tuple[Tensor, Tensor]:
    """The same, reading the kernel from memory once per iteration.

    Each thread processes its rows in blocks, so a block is still in the core's cache for the second product. NumPy
    releases the GIL and is faster for a single block; its own threads would divide the second product by columns,
    across the caches of the cores.
    """
    threads = torch.get_num_threads()
    u, columns = np.empty(len(kernel), kernel.dtype), np.empty((threads, len(v)), kernel.dtype)
    rows = max(BLOCK_BYTES // kernel[0].nbytes, 1)
    blocks = [(kernel[start : start + rows], u[start : start + rows]) for start in range(0, len(u), rows)]
    parts = [blocks[thread::threads] for thread in range(threads)]
    with _blas().limit(limits=1), ThreadPoolExecutor(threads) as pool:
        for _ in range(iterations):
            list(pool.map(_one_pass, parts, repeat(v), columns))
            with np.errstate(all="ignore"):  # values out of range are detected and recomputed
                v = np.reciprocal(columns.sum(0))
    return torch.from_numpy(u)[:, None], torch.from_numpy(v)[None]


def _one_pass(blocks: list[tuple[np.ndarray, np.ndarray]], v: np.ndarray, column: np.ndarray) -> None:
    """Compute u = 1 / K v for some rows, and write their part of K'u to `column`."""
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
    """The error of the row marginal, `sum_i |sum_j P_ij - r_i|`, in [0, 2].

    Args:
        plan: `[..., n, m]`.
        row: Row marginal r, `[..., n]`; by default 1/n.

    Returns:
        `[...]`.
    """
    return (plan.sum(-1) - (1 / plan.shape[-2] if row is None else row)).abs().sum(-1)
