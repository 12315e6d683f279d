"""LoRA: train adapters (low-rank updates of linear layers) instead of weights (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Lt, MinLen
from torch import Tensor, nn
from typing_extensions import NotRequired, TypedDict

from modalities.encoders.library import require


class Lora(TypedDict):
    """Settings of LoRA.

    Attributes:
        rank: Rank of the adapters.
        alpha: The adapters are scaled by alpha / rank.
        targets: Names of the linear layers; by default, adapters are added to all linear layers.
        dropout: Dropout on the input of the adapters.
    """

    rank: NotRequired[Annotated[int, Gt(0)]]
    alpha: NotRequired[Annotated[float, Gt(0)]]
    targets: NotRequired[Annotated[list[str], MinLen(1)]]
    dropout: NotRequired[Annotated[float, Ge(0), Lt(1)]]


def add_lora(network: nn.Module, settings: Lora | None, name: str) -> None:
    """Add adapters, which start at 0, to linear layers, and freeze all other weights.

    Args:
        network: The network, changed in place.
        settings: See `Lora`; None leaves the network as it is.
        name: The model, for messages.

    Raises:
        ValueError: peft is not installed, or the network has no linear layer with the name of a target.
    """
    if settings is None:
        return
    peft = require("peft", "lora")
    linear = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    known = sorted({path.rpartition(".")[2] for path in linear})
    targets = settings.get("targets", known)
    unknown = [target for target in targets if not any(f".{path}".endswith(f".{target}") for path in linear)]
    if unknown or not linear:
        raise ValueError(
            f"lora.targets: {name} has no linear layer {', '.join(unknown) or 'at all'}; its linear layers are "
            f"{', '.join(known) or 'none'}"
        )
    config = peft.LoraConfig(
        r=settings.get("rank", 8),
        lora_alpha=settings.get("alpha", 16),
        lora_dropout=settings.get("dropout", 0.0),
        target_modules=list(targets),
    )
    peft.inject_adapter_in_model(config, network)


def without_lora(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an encoder without LoRA, for a student whose saved weights contain the adapters."""
    return {key: value for key, value in spec.items() if key != "lora"}


def plain_names(module: nn.Module) -> dict[str, str]:
    """The names that the weights have without LoRA -> their names in `module`, without those of the adapters."""
    names = {name: name for name in module.state_dict()}
    for path in _layers(module):
        for name in [name for name in names if name.startswith(f"{path}.")]:
            del names[name]
            if name.startswith(start := f"{path}.base_layer."):
                names[f"{path}.{name.removeprefix(start)}"] = name
    return names


@torch.no_grad()
def merged_state(module: nn.Module) -> dict[str, Tensor]:
    """The weights of a module with the LoRA adapters merged, under the names that they have without LoRA."""
    state: dict[str, Any] = module.state_dict()
    for path, layer in _layers(module).items():
        name = f"{path}.base_layer.weight"
        state[name] = state[name] + layer.get_delta_weight("default")
    return {plain: state[name] for plain, name in plain_names(module).items()}


def _layers(module: nn.Module) -> dict[str, Any]:
    """Path -> layer with an update. Other networks may have layers named `base_layer`, e.g. DLA of timm."""
    return {path: layer for path, layer in module.named_modules() if hasattr(layer, "get_delta_weight")}
