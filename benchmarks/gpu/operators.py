"""Parts of the losses alone: the transport loss by several solvers, and the global term."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.limits import DEVICE, Limits, Number, Numbers, number, seconds_per_call, synchronize
from benchmarks.losses import Work, our_global_term, peak_bytes, published_global_term
from losses import sinkhorn
from losses.row_blocked import transport_cost
from pipeline.common.errors import UserError

EPSILON, ITERATIONS, DIM = 0.1, 20, 128
"""The defaults of `local_transport`."""

Transport = Callable[[Tensor, Tensor], Tensor]
"""The transport cost of two sets of unit vectors, `[n, d]` and `[n, d]`."""


def transport(limits: Limits, folder: Path, name: str) -> Numbers:
    """Time a transport loss, forward and backward, from features that are normalised first.

    Args:
        limits: The limits.
        folder: Not used.
        name: Name of the solver: eager, compiled, row_blocked or flash.
    """
    solvers: dict[str, Callable[[], Transport]] = {
        "eager": lambda: _whole,
        "compiled": lambda: partial(_whole, compiled=True),
        "row_blocked": lambda: _row_blocked,
        "flash": _flash,
    }
    solve = solvers[name]()
    found: Numbers = {}
    for n in (64,) if limits.small else (256, 1024, 4096):
        torch.compiler.reset()  # else the second size would be compiled for all sizes, which is slower
        torch.manual_seed(0)
        x, y = torch.randn(2, n, DIM, device=DEVICE)
        x.requires_grad_()
        found |= _cost(partial(_backward, solve, x, y), limits, f" for n = {n:,}")
        if name != "eager":
            found[f"difference of gradients for n = {n:,}"] = _difference(solve, x, y)
    return found


def global_term(limits: Limits, folder: Path, name: str) -> Numbers:
    """Time the global term, forward and backward.

    Args:
        limits: The limits.
        folder: Not used.
        name: published or own.
    """
    batch, negatives, dim, rows = (8, 256, 32, 1000) if limits.small else (64, 16_384, 128, 50_000)
    torch.manual_seed(0)
    with torch.device(DEVICE):
        own = name == "own"
        work = our_global_term(batch, negatives, dim) if own else published_global_term(batch, negatives, dim, rows)
    return _cost(work, limits)


def _cost(work: Work, limits: Limits, suffix: str = "") -> Numbers:
    """Milliseconds per call and peak memory, not counting what existed before."""
    took = number([1000 * seconds for seconds in seconds_per_call(work, limits)])
    return {f"ms{suffix}": took, f"MiB peak{suffix}": number([_peak_bytes(work) / 2**20])}


def _peak_bytes(work: Work) -> int:
    if DEVICE.type != "cuda":
        return peak_bytes(work)
    synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    synchronize()
    return torch.cuda.max_memory_allocated() - before


def _backward(solve: Transport, x: Tensor, y: Tensor) -> None:
    x.grad = None
    solve(F.normalize(x, dim=1), F.normalize(y, dim=1)).backward()


def _difference(solve: Transport, x: Tensor, y: Tensor) -> Number:
    """Relative difference of the gradient from that of the eager solver. It shows that both solve the same problem."""
    gradients = []
    for each in (solve, _whole):
        _backward(each, x, y)
        assert x.grad is not None
        gradients.append(x.grad.clone())
    own, expected = gradients
    return number([float((own - expected).norm() / expected.norm())])


def _whole(x: Tensor, y: Tensor, compiled: bool = False) -> Tensor:
    cost = 1 - x @ y.T
    return (sinkhorn(cost.detach(), EPSILON, ITERATIONS, compiled=compiled) * cost).sum()


def _row_blocked(x: Tensor, y: Tensor) -> Tensor:
    return transport_cost(x, y, EPSILON, ITERATIONS)[0]


def _flash() -> Transport:
    """The loss of the flash-sinkhorn package: half the squared distance of unit vectors is the cosine cost."""
    try:
        from flash_sinkhorn import SamplesLoss
    except ImportError as error:
        raise UserError(f"not installed; pip install flash-sinkhorn ({error})") from None
    fixed = {"backend": "alternating", "use_epsilon_scaling": False, "eps": EPSILON, "n_iters": ITERATIONS}
    loss: Transport = SamplesLoss("sinkhorn", half_cost=True, allow_tf32=False, **fixed)
    return loss
