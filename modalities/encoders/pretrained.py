"""Any vision model of the transformers library, with the preprocessing stored next to its weights."""

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
from modalities.encoders.library import adapt_input, first_line, measure_image, preprocessing, quiet
from modalities.encoders.lora import Lora, add_lora, without_lora
from modalities.transformers_loader import import_transformers

log = logging.getLogger(__name__)


class PretrainedVision(Encoder):
    """A transformers vision model by Hub name or local folder. The maps are all hidden states.

    Mean and std are always those of the model. Parameters that `pooled` does not depend on, such as a mask token, are
    frozen, since DDP expects gradients for all trainable parameters.

    Args:
        channels: Channels of the input. If there are not 3, the first convolution is adapted, and the input keeps the
            units of its modality.
        model: `microsoft/resnet-18`, `facebook/dinov2-small`, `runs/teacher`, ... Its code must be part of
            transformers.
        weights: `pretrained`, or `random` to build the network from its config alone.
        size: Input size in pixels; None uses the final size of the model's image processor (its crop, else its size).
        pooler: Whether `pooled` is the pooler output of the model (true) or the mean over last_hidden_state (false).
            None uses the pooler if it is trained.
        lora: LoRA, for a student: `{rank: 8, alpha: 16, targets: [q_proj, v_proj], dropout: 0.0}`, each optional. Only
            adapters of the linear layers in `targets` (by default, of all) are trained. Requires peft.

    Raises:
        ValueError: The model cannot be found, lacks weights (or has none as safetensors), is not a vision model, or
            does not support this size or number of channels.
    """

    def __init__(
        self,
        channels: int,
        *,
        model: str,
        weights: Literal["pretrained", "random"] = "pretrained",
        size: Annotated[int, Ge(16)] | None = None,
        pooler: bool | None = None,
        lora: Lora | None = None,
    ) -> None:
        config = read_config(model)
        own = read_preprocessing(model, config, size)
        super().__init__(preprocessing(channels, own.size, own.mean, own.std))
        self.network, trained_pooler = read_network(model, config, weights)
        if getattr(config, "num_channels", 3) == 3:  # the config of an exported student has its own number
            adapt_input(self.network, channels, f"transformers: {model}")
            config.num_channels = channels
        add_lora(self.network, lora, f"transformers: {model}")
        self.config = config
        self.pooler = trained_pooler if pooler is None else pooler
        # Models with learnt position embeddings need interpolation at sizes other than the one they were trained with.
        accepted = inspect.signature(self.network.forward).parameters
        native = side(getattr(config, "image_size", None)) == self.preprocessing.size
        resized = "interpolate_pos_encoding" in accepted and not native
        self.arguments = {"interpolate_pos_encoding": True} if resized else {}
        measure_image(self, f"transformers: {model}")

    def forward(self, x: Tensor) -> Features:
        out = self.network(pixel_values=self.normalise(x), output_hidden_states=True, **self.arguments)
        last = out.last_hidden_state
        if self.pooler and out.get("pooler_output") is not None:
            pooled = out.pooler_output.flatten(1)
        else:
            pooled = last.mean(1) if last.ndim == 3 else last.mean((2, 3))
        # Swin-like models return tokens, and the same features as maps in a separate field.
        maps = getattr(out, "reshaped_hidden_states", None) or out.hidden_states
        return Features(pooled, list(maps))

    def portable(self, spec: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Write the model's config and preprocessing to `folder/encoder`; see `Encoder.portable`."""
        self.config.save_pretrained(folder / "encoder")
        size, mean, std = self.preprocessing.size, self.preprocessing.mean, self.preprocessing.std
        if len(mean) != 3:  # not normalised, see `preprocessing`
            mean, std = (0.0,) * 3, (1.0,) * 3
        processor = {"size": {"height": size, "width": size}, "image_mean": mean, "image_std": std}
        (folder / "encoder" / "preprocessor_config.json").write_text(json.dumps(processor, indent=1))
        return {**without_lora(spec), "model": "./encoder", "weights": "random", "size": size, "pooler": self.pooler}


def read_config(model: str, part: str | None = "vision_config") -> Any:
    """Read the config of a model.

    Args:
        model: Hub name or local folder.
        part: For a model of vision and text, the part to return; None for the whole config.

    Raises:
        ValueError: The model cannot be read.
    """
    transformers = import_transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(
            model, local_files_only=Path(model).exists(), trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        cure = (
            "the folder must contain config.json, preprocessor_config.json and model.safetensors, as "
            "`save_pretrained` writes"
            if Path(model).exists()
            else "check the name, or download the model on a machine with a network and pass its folder"
        )
        raise ValueError(f"transformers: cannot read model {model!r}: {cure}. ({first_line(error)})") from error
    return getattr(config, part, config) if part else config


def read_network(model: str, config: Any, weights: str) -> tuple[nn.Module, bool]:
    """Load the network and report whether its pooler has weights, which checkpoints of classifiers often lack.

    Args:
        model: Hub name or local folder.
        config: What `read_config` returned.
        weights: `pretrained` or `random`.

    Raises:
        ValueError: There are no weights as safetensors, or weights are missing or have the wrong shape.
    """
    transformers = import_transformers()
    if weights == "random":
        return transformers.AutoModel.from_config(config, trust_remote_code=False), True
    try:
        with quiet("transformers"):  # suppresses its long report; important problems are reported below
            network, info = transformers.AutoModel.from_pretrained(
                model,
                config=config,
                local_files_only=Path(model).exists(),
                trust_remote_code=False,
                use_safetensors=True,  # the older format is a pickle, which can execute code
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"transformers: cannot load the weights of {model!r}: model.safetensors is required. ({first_line(error)})"
        ) from error
    pooler = [key for key in info["missing_keys"] if "pooler" in key]
    missing = sorted(set(info["missing_keys"]) - set(pooler))
    if missing or info["mismatched_keys"]:
        raise ValueError(
            f"transformers: {model!r}: {len(missing)} tensors have no weights, e.g. {missing[:3]}, and "
            f"{len(info['mismatched_keys'])} have weights of the wrong shape, so they would stay random. "
            "Use weights that match its config.json, or set `weights: random`."
        )
    if pooler:
        log.warning("%s has no weights for its pooler: using the mean of its last hidden state", model)
    return network, not pooler


def read_preprocessing(model: str, config: Any, size: int | None) -> Preprocessing:
    """Read size, mean and std from preprocessor_config.json; by default the size in the config, mean 0.5 and std 0.5.

    Args:
        model: Hub name or local folder.
        config: What `read_config` returned.
        size: Input size in pixels; None means that of the files.

    Raises:
        ValueError: The preprocessing has steps other than resize, rescale and normalise, or no single input size.
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
        raise ValueError(f"transformers: {model}: its files do not define a single input size; set `size`")
    # The processor rescales 0..255 by its own factor, whereas `normalise` starts from [0, 1].
    factor = 255 * found.get("rescale_factor", 1 / 255) if found.get("do_rescale", True) else 255
    normalised = found.get("do_normalize", True)
    mean = found.get("image_mean", [0.5] * 3) if normalised else [0.0] * 3
    std = found.get("image_std", [0.5] * 3) if normalised else [1.0] * 3
    return Preprocessing.of(3, pixels, [m / factor for m in mean], [s / factor for s in std])


def side(size: Any) -> int | None:
    """Side in pixels of a square input, from any of the formats that processors use; None if it is not square."""
    if isinstance(size, Mapping):
        sides = {size[key] for key in ("height", "width", "shortest_edge") if size.get(key)}
        return sides.pop() if len(sides) == 1 else None
    if isinstance(size, (list, tuple)):
        return size[0] if len(set(size)) == 1 else None
    return size if isinstance(size, int) else None
