"""Any classification model of torchvision."""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Ge
from torch import Tensor, nn

from losses import Features
from modalities.encoders.library import (
    LibraryEncoder,
    adapt_input,
    closest,
    first_line,
    linear_head,
    measure_image,
    preprocessing,
    quiet,
    require,
)
from modalities.encoders.weights import load_weights


class Torchvision(LibraryEncoder):
    """A torchvision classification model without its last layer; size, crop, mean and std are those of the model.

    The maps are the outputs of its stages: the last one at each resolution or, for a transformer, all tokens after each
    block. Inputs without 3 channels, such as depth, also work with pretrained weights: the first convolution is
    adapted, and the input keeps the units of its modality.

    Args:
        channels: Channels of the input.
        model: `resnet18`, `convnext_tiny`, `vit_b_16`, ...
        weights: `pretrained` (the newest of torchvision), `random`, or a weight file of this model.
        size: Input size in pixels; None means that of the model.

    Raises:
        ValueError: torchvision is not installed or has no such model, or the weights cannot be loaded or do not match.
    """

    def __init__(
        self,
        channels: int,
        *,
        model: str,
        weights: str = "pretrained",
        size: Annotated[int, Ge(16)] | None = None,
    ) -> None:
        models: Any = require("torchvision.models", "torchvision")
        known = models.list_models(module=models)
        if model not in known:
            raise ValueError(f"torchvision: there is no classification model {model!r}{closest(model, known)}")
        published = models.get_model_weights(model).DEFAULT
        own = published.transforms()
        network = read_torchvision(models, model, weights, published)
        adapt_input(network, channels, f"torchvision: {model}")
        native = own.crop_size[0]
        crop = min(native / own.resize_size[0], 1.0)
        super().__init__(preprocessing(channels, size or native, own.mean, own.std, crop))
        self.network = network
        self.maps_end_in_channels = "swin" in model  # [B, H, W, C]
        self.stages = stages(network)
        measure_image(self, f"torchvision: {model}")

    def forward(self, x: Tensor) -> Features:
        found: list[Tensor] = []
        stages = map(self.network.get_submodule, self.stages)
        handles = [stage.register_forward_hook(lambda _, __, out: found.append(out)) for stage in stages]
        try:
            pooled = self.network(self.normalise(x))
        finally:
            for handle in handles:
                handle.remove()
        pooled = pooled if isinstance(pooled, Tensor) else pooled[0]  # in training, Inception adds an auxiliary output
        maps = [m.permute(0, 3, 1, 2) if self.maps_end_in_channels else m for m in found if m.ndim in (3, 4)]
        return Features(pooled, last_of_each_size(maps))


def read_torchvision(models: Any, model: str, weights: str, published: Any) -> nn.Module:
    """Build a torchvision model for 3 channels, without its last linear layer.

    Args:
        models: `torchvision.models`.
        model: Its name.
        weights: See `Torchvision`.
        published: The weights that `pretrained` refers to.

    Raises:
        ValueError: The weights cannot be loaded or do not match, or the model has no linear layer.
    """
    try:
        with quiet("torchvision"):
            network: nn.Module = models.get_model(model, weights=published if weights == "pretrained" else None)
    except Exception as error:  # networks may raise any error
        raise ValueError(
            f"torchvision: cannot load the weights of {model!r}: without a network, download {published.url} "
            f"elsewhere and set `weights` to the file, or `weights: random`. ({first_line(error)})"
        ) from error
    head = linear_head(network)
    if head is None:
        raise ValueError(
            f"torchvision: {model} does not end in a linear layer, so its features cannot be located; use another model"
        )
    parent, _, name = head.rpartition(".")
    setattr(network.get_submodule(parent), name, nn.Identity())
    if weights not in ("pretrained", "random"):
        load_weights(network, weights, skip=[f"{head}.", "AuxLogits.", "aux"])
    return network


def stages(network: nn.Module) -> list[str]:
    """Paths of the modules whose outputs may be maps: the stages of a CNN, or the blocks of a transformer."""
    modules = dict(network.named_modules())
    for path in ("encoder.layers", "features", "blocks", "layers", "trunk_output"):
        if path in modules:
            return [f"{path}.{name}" for name, _ in modules[path].named_children()]
    return [name for name, _ in network.named_children() if "aux" not in name.lower() and "pool" not in name]


def last_of_each_size(maps: list[Tensor]) -> list[Tensor]:
    """The last one of successive maps of the same size; all of them if they are tokens."""
    kept: list[Tensor] = []
    for m in maps:
        if kept and m.ndim == 4 and kept[-1].shape[2:] == m.shape[2:]:
            kept.pop()
        kept.append(m)
    return [m for m in kept if m.ndim == 3 or m.shape[-1] * m.shape[-2] > 1]
