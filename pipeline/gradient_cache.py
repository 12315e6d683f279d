"""Large contrastive batches on small memory: gradient caching (Gao et al. 2021, arXiv 2101.06983).

The losses of WCoRD look across samples, so the whole batch's features must meet; the networks' activations need not.
`in_parts` runs a network part by part without keeping activations. When the losses' gradient with respect to the
features comes back, each part is run again, this time with a graph, and its share of the gradient is taken through it.
One more forward pass buys activations of one part instead of the batch's.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from losses import Features


def in_parts(network: nn.Module, x: Any, size: int, maps: bool = True) -> Features:
    """`network(x)`, `size` samples at a time; its parameters get the gradients of the same parts with graph.

    x: what the modality's `collate` made: tensors `[B, ...]`, alone or in lists and dicts. The same random numbers are
    drawn when a part is run again, and buffers (running statistics) change once. What differs from the whole batch at
    once: batch norms see a part. x itself gets no gradient. maps: whether to keep the feature maps, which are large.
    Raises ValueError for a size below 1.
    """
    if size < 1:
        raise ValueError(f"parts of {size} samples: must be at least 1")
    run = _Run(network, _split(x, size), maps)
    outputs = _InParts.apply(run, *(p for p in network.parameters() if p.requires_grad))
    return _features(outputs, run.count)


class _Run:
    """A network, the parts of its input, and the state in which each was run."""

    def __init__(self, network: nn.Module, parts: list[Any], maps: bool) -> None:
        self.network, self.parts, self.maps = network, parts, maps
        self.random: list[_RandomState] = []
        self.autocast: AbstractContextManager[Any] | None = None
        self.count = 0

    def first(self) -> list[Tensor]:
        device = next(self.network.parameters()).device
        self.autocast = torch.autocast(
            device.type, torch.get_autocast_dtype(device.type), enabled=torch.is_autocast_enabled(device.type)
        )
        found = []
        for part in self.parts:
            self.random.append(_RandomState(device))
            found.append(self._outputs(part))
        return [torch.cat(pieces) for pieces in zip(*found, strict=True)]

    def _outputs(self, part: Any) -> list[Tensor]:
        features = self.network(part)
        maps = features.maps if self.maps else []
        self.count = len(maps)
        return [features.pooled, *maps, *([] if features.logits is None else [features.logits])]

    def gradient(
        self, number: int, upstream: list[tuple[int, Tensor]], parameters: list[Tensor]
    ) -> list[Tensor | None]:
        """One part's share of the parameters' gradients. upstream: `(output, gradient)` of this part's outputs."""
        with torch.enable_grad(), self.autocast, self.random[number]:  # type: ignore[union-attr]
            outputs = self._outputs(self.parts[number])
        kept = [(outputs[i], gradient) for i, gradient in upstream if outputs[i].requires_grad]
        if not kept:  # what had an upstream gradient is frozen
            return [None] * len(parameters)
        targets, gradients = zip(*kept, strict=True)
        return list(torch.autograd.grad(targets, parameters, gradients, allow_unused=True))


class _InParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: _Run, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.run = run
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*parameters)  # so that changing them in between is noticed
        return tuple(run.first())

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        run: _Run = ctx.run
        parameters = list(ctx.saved_tensors)
        total: list[Tensor | None] = [None] * len(parameters)
        known = {i: gradient for i, gradient in enumerate(upstream) if gradient is not None}
        buffers = [(buffer, buffer.clone()) for buffer in run.network.buffers()]
        start = 0
        for number, part in enumerate(run.parts):
            rows = slice(start, start + _length(part))
            start = rows.stop
            shares = run.gradient(number, [(i, gradient[rows]) for i, gradient in known.items()], parameters)
            for i, share in enumerate(shares):
                if share is not None:
                    total[i] = share if total[i] is None else total[i] + share  # type: ignore[operator]
        for buffer, before in buffers:
            buffer.copy_(before)
        return None, *total


class _RandomState(AbstractContextManager[None]):
    """The random numbers that come next, on the CPU and on one GPU; as a context, they come again."""

    def __init__(self, device: torch.device) -> None:
        self.devices = [device] if device.type == "cuda" else []
        self.cpu = torch.get_rng_state()
        self.gpu = [torch.cuda.get_rng_state(device) for device in self.devices]

    def __enter__(self) -> None:
        self.fork = torch.random.fork_rng(self.devices)
        self.fork.__enter__()
        torch.set_rng_state(self.cpu)
        for device, state in zip(self.devices, self.gpu, strict=True):
            torch.cuda.set_rng_state(state, device)

    def __exit__(self, *error: Any) -> None:
        self.fork.__exit__(*error)


def _features(flat: tuple[Tensor, ...], maps: int) -> Features:
    return Features(flat[0], list(flat[1 : 1 + maps]), flat[1 + maps] if len(flat) > 1 + maps else None)


def _split(x: Any, size: int) -> list[Any]:
    if isinstance(x, Tensor):
        return list(x.split(size))
    if isinstance(x, Mapping):
        columns = {key: _split(value, size) for key, value in x.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return [list(row) for row in zip(*(_split(value, size) for value in x), strict=True)]


def _length(x: Any) -> int:
    while not isinstance(x, Tensor):
        x = next(iter(x.values() if isinstance(x, Mapping) else x))
    return len(x)
