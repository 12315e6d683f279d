"""Counts the floating-point operations (FLOPs) of matrix products, convolutions and attention while they run.

The formulas are those of `torch.utils.flop_counter`. Its `FlopCounterMode` is not used: networks do not compile while
it is active, and it lacks the fused kernels below.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count


class FlopCounter(TorchDispatchMode):
    """A context manager that counts the FLOPs of this thread and of its backward passes. A multiply-add is two FLOPs.

    The operations run as without it, so results do not change. In compiled networks, it counts the library calls that
    the compiled code makes, but not those that are replaced by generated kernels (`max-autotune`). It can be entered
    several times, and then adds to the earlier count.

    Attributes:
        flops: The count.
        unknown: Operations whose FLOPs could not be counted.
    """

    supports_higher_order_operators = True

    def __new__(cls) -> FlopCounter:
        """If this process compiles networks, a counter that is never compiled itself."""
        return super().__new__(_NeverCompiled if "torch._dynamo" in sys.modules else cls)

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.unknown: set[str] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else torch wraps `__torch_dispatch__`, and the wrapper imports torch._dynamo, which takes a second.
        return False

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let networks be compiled while the counter is active."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = getattr(func, "_overloadpacket", func)
        formula = _FUSED.get(packet) or flop_registry.get(packet)
        if formula is not None:
            try:
                self.flops += int(formula(*args, **kwargs, out_val=out))
            except Exception:  # a kind of tensor that the formula does not expect; the operation itself has succeeded
                self.unknown.add(str(packet))
        return out


class _NeverCompiled(FlopCounter):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_dispatch__(func, types, args, kwargs)


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)


def _self_attention(query: Tensor, key: Tensor, value: Tensor, width: int, *_: Any, **__: Any) -> int:
    """`nn.MultiheadAttention` in one kernel: four projections, the scores, and the sum that they weight."""
    return sum(8 * n * width**2 + 4 * n**2 * width for n in _lengths(query))


def _transformer_layer(x: Tensor, width: int, *rest: Any, **__: Any) -> int:
    """`nn.TransformerEncoderLayer` in one kernel."""
    first = rest[_FIRST_LINEAR - 2]
    return _self_attention(x, x, x, width) + sum(4 * n * first.numel() for n in _lengths(x))


_FIRST_LINEAR = 14
"""Position of the weight of the first of the two linear layers in the arguments of `_transformer_encoder_layer_fwd`."""


def _lengths(x: Tensor) -> list[int]:
    """The number of tokens of each sample of `[B, N, C]`; nested tensors store no padding."""
    return x._nested_tensor_size()[:, 0].tolist() if x.is_nested else [x.shape[1]] * x.shape[0]


_aten: Any = torch.ops.aten
_FUSED: dict[Any, Callable[..., int]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    _aten._native_multi_head_attention: _self_attention,
    _aten._transformer_encoder_layer_fwd: _transformer_layer,
}
"""The formulas of fused kernels that `torch.utils.flop_counter` does not know."""
