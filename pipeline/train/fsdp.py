"""FSDP2: weights are sharded across ranks (torch's `DTensor`) and gathered for checkpoints and the saved student.

Student and teacher are sharded. The losses are replicated on all ranks: they are small, and some of their parameters
are scalars, or are clamped in the forward pass, and clamping a gathered copy would have no lasting effect.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils import _pytree

from losses import Features
from pipeline.common.errors import UserError
from pipeline.config.settings import Config
from pipeline.models.distillation import Distillation
from pipeline.models.network import Joint, Network
from pipeline.models.sharded import is_sharded
from pipeline.train.activation_checkpointing import blocks, encoders

# FSDP finds tensors in a module's output only if its types are registered as pytree nodes.
_pytree.register_pytree_node(
    Features,
    lambda features: ([features.pooled, features.maps, features.logits], None),
    lambda parts, _: Features(*parts),
    serialized_type_name="losses.Features",
)


def prepare_sharding(model: Distillation, config: Config, accelerator: Accelerator) -> Network | Joint | None:
    """Configure the sharding of a model, before Accelerate prepares it.

    Args:
        model: The model.
        config: The config.
        accelerator: The accelerator.

    Returns:
        A copy of the student that is not sharded; None without FSDP.

    Raises:
        UserError: A setting is not supported with FSDP.
    """
    if not accelerator.is_fsdp2:
        return None
    if config.train.micro_batch is not None:
        raise UserError(
            "train.micro_batch: not supported with FSDP, which has already freed the weights when micro-batches run "
            "again in the backward pass; set train.gradient_checkpointing instead."
        )
    if config.train.precision == "fp16":
        raise UserError(
            "train.precision: fp16 is not supported with FSDP, because each rank would scale gradients separately; "
            "use bf16 or fp32."
        )
    plugin = accelerator.state.fsdp_plugin
    if plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = _units(model)
    plugin.ignored_modules = r"losses(\..*)?"
    # Parameters stay fp32; autocast uses half precision as without FSDP; losses use full precision.
    plugin.mixed_precision_policy = None
    plugin.cpu_ram_efficient_loading = False  # every rank has built the same weights
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # required by FSDP
    return copy.deepcopy(model.student).requires_grad_(False).to(accelerator.device)


def _units(model: Distillation) -> list[str]:
    """Class names of the modules that FSDP shards and gathers individually: the blocks of the encoders."""
    networks = [network for network in (model.student, model.teacher) if isinstance(network, (Network, Joint))]
    found: set[str] = set()
    for encoder in chain.from_iterable(map(encoders, networks)):
        found |= {type(block).__name__ for block in blocks(encoder)}
        found |= {name for child in encoder.children() for name in getattr(child, "_no_split_modules", None) or ()}
    there = {type(module).__name__ for network in networks for module in network.modules()}
    return sorted(found & there)


def plain_student(model: Distillation, spare: Network | Joint | None) -> Network | Joint:
    """Get the student with full weights. Call it on all ranks.

    Args:
        model: The model.
        spare: The copy of the student from `prepare_sharding`, which receives the current weights.

    Returns:
        The student itself, or the copy with FSDP.
    """
    if spare is None:
        return model.student
    spare.load_state_dict(whole(model.student.state_dict()))
    return spare


def average_gradients(model: Distillation, accelerator: Accelerator) -> None:
    """Average the gradients of the losses' parameters over ranks, since FSDP only averages sharded parameters."""
    for parameter in model.losses.parameters():
        if parameter.grad is not None:
            parameter.grad = accelerator.reduce(parameter.grad, "mean")


def whole(tree: Any) -> Any:
    """Gather all sharded tensors in dicts and lists, on the CPU. Call it on all ranks."""
    if is_sharded(tree):
        return tree.full_tensor().cpu()
    if isinstance(tree, Mapping):
        return {key: whole(value) for key, value in tree.items()}
    return [whole(value) for value in tree] if isinstance(tree, list) else tree


def cut_like(value: Tensor, like: Tensor) -> Tensor:
    """Shard a full tensor, equal on all ranks, like another one of its shape."""
    if not is_sharded(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device).contiguous(), like.device_mesh, like.placements, src_data_rank=None)


def load_model(model: Distillation, state: Mapping[str, Tensor]) -> None:
    """Load full weights into a model, sharded or not.

    Args:
        model: The model.
        state: Name -> full weight, as in a checkpoint.

    Raises:
        UserError: The weights belong to another student or other losses.
    """
    own = model.state_dict()
    cut = {name: cut_like(value, own.get(name, value)) for name, value in state.items()}
    try:
        model.load_trainable_state(cut)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"the weights of the checkpoint do not match: {reason}. Resume with the config and data of the checkpoint, "
            "or start again with --overwrite."
        ) from None


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the full state of an optimiser into one whose parameters may be sharded."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, moments in state["state"].items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.shape == (like := parameters[number]).shape:
                # Use the memory format of the parameter, which fused optimisers assume.
                whole_like = value if is_sharded(like) else torch.empty_like(like).copy_(value)
                moments[name] = cut_like(whole_like, like)
    optimizer.load_state_dict(state)
