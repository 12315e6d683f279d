"""Activation checkpointing: recompute activations in the backward pass (Chen et al. 2016, arXiv 1604.06174)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

from torch import Tensor, is_grad_enabled, nn
from torch.utils.checkpoint import checkpoint

from modalities.encoders.base import Encoder
from pipeline.common.errors import UserError
from pipeline.models.network import Joint, Network


def checkpoint_gradients(network: Network | Joint) -> None:
    """Make every block of the encoders store only its input while gradients are computed.

    For a transformers model, its own method selects the blocks; otherwise, they are the entries of `nn.ModuleList`s.
    Gradients and running statistics are unchanged.

    Args:
        network: The network, modified in place.

    Raises:
        UserError: An encoder has no such blocks.
    """
    for encoder in encoders(network):
        pretrained = [m for m in encoder.children() if getattr(m, "supports_gradient_checkpointing", False)]
        if not (blocks(encoder) or pretrained):
            raise UserError(
                f"train.gradient_checkpointing: {type(encoder).__name__} has no blocks to recompute; set "
                "train.gradient_checkpointing to false."
            )
        for model in pretrained:
            cast(Any, model).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        for block in blocks(encoder):
            _run_again(block)


def forget_checkpoints(network: Network | Joint) -> None:
    """Make the blocks of a deep copy run their own forward pass instead of the original's, in place."""
    for encoder in encoders(network):
        for block in blocks(encoder):
            block.__dict__.pop("forward", None)


def encoders(network: Network | Joint) -> list[Encoder]:
    """The encoders of a network, or of all networks of a joint one."""
    parts = network.networks if isinstance(network, Joint) else [network]
    return [cast(Network, part).encoder for part in parts]


def blocks(encoder: Encoder) -> list[nn.Module]:
    """The entries of an encoder's `nn.ModuleList`s."""
    return [block for m in encoder.children() if isinstance(m, nn.ModuleList) for block in m]


def _run_again(block: nn.Module) -> None:
    forward = block.forward

    def run(*inputs: Any, **keywords: Any) -> Any:
        if not (block.training and is_grad_enabled()):
            return forward(*inputs, **keywords)
        return checkpoint(
            forward, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), _Unmoved(block)), **keywords
        )

    block.forward = run  # type: ignore[method-assign]


class _Unmoved(AbstractContextManager[None]):
    """Restores the buffers of a module, so that running statistics are not updated twice."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.before: list[tuple[Tensor, Tensor]] = []

    def __enter__(self) -> None:
        self.before = [(buffer, buffer.clone()) for buffer in self.module.buffers()]

    def __exit__(self, *error: Any) -> None:
        for buffer, value in self.before:
            buffer.data.copy_(value)
