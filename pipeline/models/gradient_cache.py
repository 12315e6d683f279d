"""Gradient caching: large contrastive batches in little memory (Gao et al. 2021, arXiv 2101.06983).

WCoRD's losses compare samples, so they need the features of the whole batch, but not the activations of the networks.
`in_parts` runs a network on micro-batches without storing activations. In the backward pass, given the gradient of the
losses with respect to the features, each micro-batch is run again with a graph, and its gradient is backpropagated. At
the cost of a second forward pass, only the activations of one micro-batch are in memory at a time.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from losses import Features
from pipeline.data.rows import length, take_rows


def in_parts(network: nn.Module, x: Any, size: int, maps: bool = True) -> Features:
    """Compute `network(x)` in micro-batches, with the same parameter gradients as one full-batch pass.

    A micro-batch uses the same random numbers when it is run again, and buffers (running statistics) are updated once.
    One difference to a full-batch pass: batch normalisation uses micro-batch statistics. x gets no gradient.

    Args:
        network: The network.
        x: Output of the modality's `collate`: tensors `[B, ...]`, also in lists and dicts.
        size: Number of samples per micro-batch.
        maps: Whether to return feature maps, which are large.

    Raises:
        ValueError: `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"the micro-batch size is {size}; it must be at least 1")
    run = _Run(network, _split(x, size), maps)
    outputs = _InParts.apply(run, *(p for p in network.parameters() if p.requires_grad))
    return _features(outputs, run.count)


class _Run:
    """A network, its micro-batches, and the random state and autocast settings that they are run with."""

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
        """The parameter gradients for one micro-batch. upstream: `(output, gradient)` of each output."""
        with torch.enable_grad(), self.autocast, self.random[number]:  # type: ignore[union-attr]
            outputs = self._outputs(self.parts[number])
        kept = [(outputs[i], gradient) for i, gradient in upstream if outputs[i].requires_grad]
        if not kept:  # all outputs with an upstream gradient are frozen
            return [None] * len(parameters)
        targets, gradients = zip(*kept, strict=True)
        return list(torch.autograd.grad(targets, parameters, gradients, allow_unused=True))


class _InParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: _Run, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.run = run
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*parameters)  # detects in-place changes before the backward
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
            rows = slice(start, start + length(part))
            start = rows.stop
            shares = run.gradient(number, [(i, gradient[rows]) for i, gradient in known.items()], parameters)
            for i, share in enumerate(shares):
                if share is not None:
                    total[i] = share if total[i] is None else total[i] + share  # type: ignore[operator]
        for buffer, before in buffers:
            buffer.copy_(before)
        return None, *total


class _RandomState(AbstractContextManager[None]):
    """The random state of the CPU and of one GPU. As a context manager, it is restored temporarily."""

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
    return [take_rows(x, slice(start, start + size)) for start in range(0, length(x), size)]
