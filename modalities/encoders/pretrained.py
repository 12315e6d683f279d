"""Any vision model of the transformers library, with the preprocessing that lies beside its weights."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from losses import Features
from modalities.encoders.base import Encoder, Preprocessing
from modalities.transformers_loader import import_transformers

log = logging.getLogger(__name__)


class PretrainedVision(Encoder):
    """A transformers vision model by hub name or local folder.

    model: `microsoft/resnet-18`, `facebook/dinov2-small`, `runs/teacher`, ...; its code must be in transformers itself.
    weights: `random` builds the network from its config alone.
    size: input pixels; None: what the model's own image processor ends with (its crop, else its size).
    pooler: `pooled` is the model's pooler output, else the mean over last_hidden_state; None: if it has a trained one.
    The maps are all its hidden states. Mean and std are always the model's own. Parameters that `pooled` does not
    depend on, such as a mask token, are frozen: DDP wants a gradient for every other.
    Raises ValueError for a model that cannot be found, has no safetensors weights or not all of them, is not a vision
    model, or does not take this size or number of channels.
    """

    def __init__(
        self,
        channels: int,
        *,
        model: str,
        weights: Literal["pretrained", "random"] = "pretrained",
        size: Annotated[int, Ge(16)] | None = None,
        pooler: bool | None = None,
    ) -> None:
        if channels != 3:
            raise ValueError(
                f"transformers: {model} is made for 3 channels, this input has {channels}. "
                "For depth, set the modality's `input: image`: it is made for such networks."
            )
        config = read_config(model)
        super().__init__(read_preprocessing(model, config, size))
        self.config = config
        self.network, trained_pooler = read_network(model, config, weights)
        self.pooler = trained_pooler if pooler is None else pooler
        # Models with learnt positions take another size than they were trained at only if told to interpolate.
        accepted = inspect.signature(self.network.forward).parameters
        native = side(getattr(config, "image_size", None)) == self.preprocessing.size
        resized = "interpolate_pos_encoding" in accepted and not native
        self.arguments = {"interpolate_pos_encoding": True} if resized else {}
        size = self.preprocessing.size
        black = torch.zeros(1, channels, size, size, device=self.mean.device)
        features = freeze_unused(self, black, f"transformers: {model} does not run on an image of {size} x {size}")
        self.dim = features.pooled.shape[1]
        self.map_channels = tuple(m.shape[1] if m.ndim == 4 else m.shape[2] for m in features.maps)

    def forward(self, x: Tensor) -> Features:
        out = self.network(pixel_values=self.normalise(x), output_hidden_states=True, **self.arguments)
        last = out.last_hidden_state
        if self.pooler and out.get("pooler_output") is not None:
            pooled = out.pooler_output.flatten(1)
        else:
            pooled = last.mean(1) if last.ndim == 3 else last.mean((2, 3))
        # Swin and its like keep tokens, and beside them the same as maps.
        maps = getattr(out, "reshaped_hidden_states", None) or out.hidden_states
        return Features(pooled, list(maps))

    def portable(self, spec: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Write the model's config and preprocessing to `folder/encoder`; see `Encoder.portable`."""
        self.config.save_pretrained(folder / "encoder")
        size, mean, std = self.preprocessing.size, self.preprocessing.mean, self.preprocessing.std
        processor = {"size": {"height": size, "width": size}, "image_mean": mean, "image_std": std}
        (folder / "encoder" / "preprocessor_config.json").write_text(json.dumps(processor, indent=1))
        return {**spec, "model": "./encoder", "weights": "random", "size": size, "pooler": self.pooler}


def freeze_unused(encoder: Encoder, example: Any, failure: str) -> Features:
    """Freeze what `pooled` does not depend on, and return the features of an example, whose sizes are the encoder's:
    configs name them in too many ways. Raises ValueError, which begins with `failure`."""
    parameters = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    try:
        with torch.enable_grad():
            features: Features = encoder.eval()(example)
            used = torch.autograd.grad(features.pooled.sum(), parameters, allow_unused=True)
    except Exception as error:  # whatever a foreign network raises
        raise ValueError(f"{failure}: {error}") from error
    encoder.train()
    for parameter, gradient in zip(parameters, used, strict=True):
        parameter.requires_grad_(gradient is not None)
    return features


def read_config(model: str, part: str | None = "vision_config") -> Any:
    """The model's config; of one that joins vision and text, that of its `part`, None for the whole."""
    transformers = import_transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(
            model, local_files_only=Path(model).exists(), trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        cure = (
            "a folder needs the config.json, preprocessor_config.json and model.safetensors of `save_pretrained`"
            if Path(model).exists()
            else "check the name, or download it where there is a network and give the folder"
        )
        raise ValueError(f"transformers: cannot read model {model!r}: {cure}. ({first_line(error)})") from error
    return getattr(config, part, config) if part else config


def read_network(model: str, config: Any, weights: str) -> tuple[nn.Module, bool]:
    """The network, and whether its pooler can be used: checkpoints of classifiers often come without one."""
    transformers = import_transformers()
    if weights == "random":
        return transformers.AutoModel.from_config(config, trust_remote_code=False), True
    try:
        network, info = transformers.AutoModel.from_pretrained(
            model,
            config=config,
            local_files_only=Path(model).exists(),
            trust_remote_code=False,
            use_safetensors=True,  # the other format is a pickle
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"transformers: cannot load the weights of {model!r}: model.safetensors is needed. ({first_line(error)})"
        ) from error
    pooler = [key for key in info["missing_keys"] if "pooler" in key]
    missing = sorted(set(info["missing_keys"]) - set(pooler))
    if missing or info["mismatched_keys"]:
        raise ValueError(
            f"transformers: {model!r}: {len(missing)} tensors have no weights, such as {missing[:3]}, and "
            f"{len(info['mismatched_keys'])} have weights of another shape: they would stay random. "
            "Give weights that belong to its config.json, or set `weights: random`."
        )
    if pooler:
        log.warning("%s has no weights for its pooler: using the mean of its last hidden state", model)
    return network, not pooler


def read_preprocessing(model: str, config: Any, size: int | None) -> Preprocessing:
    """Size, mean and std from the model's preprocessor_config.json; without one its config's size, 0.5, 0.5.

    Raises ValueError for steps that cannot be written as a size, a mean and a std.
    """
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        found, _ = ImageProcessingMixin.get_image_processor_dict(model, local_files_only=Path(model).exists())
    except (OSError, ValueError):
        found = {"size": getattr(config, "image_size", None), "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        log.warning("%s has no preprocessor_config.json: using its config's size, mean 0.5 and std 0.5", model)
    for step in ("rescale_offset", "do_flip_channel_order", "do_color_quantize"):
        if found.get(step):
            raise ValueError(f"transformers: {model}: its preprocessing step {step} is not supported")
    pixels = size or side(found["crop_size"] if found.get("do_center_crop") else found.get("size"))
    if not pixels:
        raise ValueError(f"transformers: {model}: its files give no single input size; set `size`")
    # The processor scales 0..255 by its own factor; `normalise` gives [0, 1].
    factor = 255 * found.get("rescale_factor", 1 / 255) if found.get("do_rescale", True) else 255
    normalised = found.get("do_normalize", True)
    mean = found.get("image_mean", [0.5] * 3) if normalised else [0.0] * 3
    std = found.get("image_std", [0.5] * 3) if normalised else [1.0] * 3
    return Preprocessing.of(3, pixels, [m / factor for m in mean], [s / factor for s in std])


def side(size: Any) -> int | None:
    """Pixels of a square input, of the ways processors write it; None where there is no single one."""
    if isinstance(size, Mapping):
        sides = {size[key] for key in ("height", "width", "shortest_edge") if size.get(key)}
        return sides.pop() if len(sides) == 1 else None
    if isinstance(size, (list, tuple)):
        return size[0] if len(set(size)) == 1 else None
    return size if isinstance(size, int) else None


def first_line(error: Exception) -> str:
    """Of an error of transformers, whose messages go on for a page."""
    return str(error).strip().split("\n")[0]
