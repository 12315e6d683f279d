"""Weights that FSDP2 has cut over the ranks (torch's `DTensor`), seen as whole ones: for checkpoints and the student.

The student and the teacher are cut. The losses stay whole on every rank: they are small, and some of their parameters
are scalars, or are put back within bounds in the forward pass, which a copy that was gathered for it would forget.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils import _pytree

from losses import Features
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.gradient_checkpointing import blocks, encoders
from pipeline.model import Distillation
from pipeline.network import Joint, Network

# FSDP finds the tensors of a module's output only in types that torch knows how to take apart.
_pytree.register_pytree_node(
    Features,
    lambda features: ([features.pooled, features.maps, features.logits], None),
    lambda parts, _: Features(*parts),
    serialized_type_name="losses.Features",
)


def prepare_sharding(model: Distillation, config: Config, accelerator: Accelerator) -> Network | Joint | None:
    """Say how the model is to be cut, before it is prepared; a copy of the student that stays whole, None without FSDP.

    Raises UserError for what does not go with it.
    """
    if not accelerator.is_fsdp2:
        return None
    if config.train.micro_batch is not None:
        raise UserError(
            "train.micro_batch: runs parts of the batch again in the backward pass, where FSDP has taken the weights "
            "away; set train.gradient_checkpointing instead."
        )
    if config.train.precision == "fp16":
        raise UserError(
            "train.precision: under FSDP each rank would scale its own part of the gradient; use bf16 or fp32."
        )
    plugin = accelerator.state.fsdp_plugin
    if plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = _units(model)
    plugin.ignored_modules = r"losses(\..*)?"
    # Parameters stay fp32, autocast computes in half precision as it does without FSDP, and the losses in full.
    plugin.mixed_precision_policy = None
    plugin.cpu_ram_efficient_loading = False  # every rank has built the same weights
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # FSDP cuts no other
    return copy.deepcopy(model.student).requires_grad_(False).to(accelerator.device)


def _units(model: Distillation) -> list[str]:
    """The classes of modules that are cut, gathered and let go one at a time: the blocks of the encoders."""
    networks = [network for network in (model.student, model.teacher) if isinstance(network, (Network, Joint))]
    found: set[str] = set()
    for encoder in chain.from_iterable(map(encoders, networks)):
        found |= {type(block).__name__ for block in blocks(encoder)}
        found |= {name for child in encoder.children() for name in getattr(child, "_no_split_modules", None) or ()}
    there = {type(module).__name__ for network in networks for module in network.modules()}
    return sorted(found & there)


def plain_student(model: Distillation, spare: Network | Joint | None) -> Network | Joint:
    """The student with whole weights: itself, or the spare copy with what is now in it; called by all ranks."""
    if spare is None:
        return model.student
    spare.load_state_dict(whole(model.student.state_dict()))
    return spare


def average_gradients(model: Distillation, accelerator: Accelerator) -> None:
    """Average the gradients of the losses' parameters over ranks: FSDP does it only for what it has cut."""
    for parameter in model.losses.parameters():
        if parameter.grad is not None:
            parameter.grad = accelerator.reduce(parameter.grad, "mean")


def whole(tree: Any) -> Any:
    """Dicts, lists and tensors with every cut tensor made whole, on the CPU; called by all ranks."""
    if isinstance(tree, DTensor):
        return tree.full_tensor().cpu()
    if isinstance(tree, Mapping):
        return {key: whole(value) for key, value in tree.items()}
    return [whole(value) for value in tree] if isinstance(tree, list) else tree


def cut_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same on all ranks, cut as another of its shape is."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device).contiguous(), like.device_mesh, like.placements, src_data_rank=None)


def load_model(model: Distillation, state: Mapping[str, Tensor]) -> None:
    """Load whole weights into a model, cut or not. Raises UserError for those of another student or other losses."""
    own = model.state_dict()
    cut = {name: cut_like(value, own.get(name, value)) for name, value in state.items()}
    try:
        model.load_trainable_state(cut)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"the checkpoint's weights do not fit: {reason}. Go on with the config and the data that it was made with, "
            "or start anew with --overwrite."
        ) from None


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimiser's whole state into one whose parameters are cut or not."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, moments in state["state"].items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.shape == (like := parameters[number]).shape:
                # In the parameter's own order in memory, through which fused optimisers run without looking.
                whole_like = value if isinstance(like, DTensor) else torch.empty_like(like).copy_(value)
                moments[name] = cut_like(whole_like, like)
    optimizer.load_state_dict(state)
