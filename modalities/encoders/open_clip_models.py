"""The vision and text towers of open_clip."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from losses import Features
from modalities.encoders.base import Preprocessing
from modalities.encoders.library import (
    LibraryEncoder,
    adapt_input,
    closest,
    first_line,
    measure,
    measure_image,
    preprocessing,
    quiet,
    require,
)
from modalities.encoders.weights import load_weights


class OpenCLIPVision(LibraryEncoder):
    """The vision tower of an open_clip model. `pooled` is the image embedding, without L2 normalisation.

    The maps are the outputs of its blocks; size, mean and std are those of the model.

    Args:
        channels: Channels of the input.
        model: `ViT-B-32`, `RN50`, a Hub name or a local folder.
        weights: A tag such as `laion2b_s34b_b79k`, `pretrained` for a Hub name or folder, `random`, or a weight file of
            the whole model.
        size: Input size in pixels; None means that of the model.

    Raises:
        ValueError: open_clip is not installed or has no such model or tag, or the weights do not match.
    """

    def __init__(self, channels: int, *, model: str, weights: str, size: Annotated[int, Ge(16)] | None = None) -> None:
        both = read_open_clip(model, weights, size)
        own = both.visual.preprocess_cfg
        native = own["size"][0] if isinstance(own["size"], (tuple, list)) else own["size"]
        super().__init__(preprocessing(channels, size or native, own["mean"], own["std"]))
        self.network = both.visual
        adapt_input(self.network, channels, f"open_clip: {model}")
        measure_image(self, f"open_clip: {model}")

    def forward(self, x: Tensor) -> Features:
        x = self.normalise(x)
        if not hasattr(self.network, "forward_intermediates"):
            return Features(self.network(x))
        out = self.network.forward_intermediates(x)  # type: ignore[operator]
        return Features(out["image_features"], list(out["image_intermediates"]))


class OpenCLIPText(LibraryEncoder):
    """The text tower of an open_clip model. `pooled` is the text embedding, without L2 normalisation.

    The maps are the outputs of its blocks `[B, N, C]`. Set `tokenizer: open_clip:MODEL` of the modality.

    Args:
        vocabulary: Vocabulary size of the modality's tokenizer; must be that of the model.
        model: See `OpenCLIPVision`.
        weights: See `OpenCLIPVision`.

    Raises:
        ValueError: See `OpenCLIPVision`; or the tokenizer is not that of the model.
    """

    reads_pictures: ClassVar[bool] = False

    def __init__(self, vocabulary: int, *, model: str, weights: str) -> None:
        network = read_open_clip(model, weights, None).text
        known = getattr(network, "vocab_size", vocabulary)
        if known != vocabulary:
            raise ValueError(
                f"open_clip: {model} has a vocabulary of {known} tokens, but the tokenizer has {vocabulary}; set "
                f"`tokenizer: open_clip:{model}` of the modality"
            )
        super().__init__(Preprocessing(network.context_length, (0.0,), (1.0,)))
        self.network = network
        self.padding = getattr(network, "pad_id", 0)
        example = {"ids": torch.ones(1, 2, dtype=torch.long), "mask": torch.ones(1, 2, dtype=torch.bool)}
        measure(self, example, f"open_clip: {model} does not run on two tokens")

    def forward(self, x: dict[str, Tensor]) -> Features:
        """Encode `ids [B, N]`, int64, with `mask [B, N]`, True for tokens; N is at most the context length."""
        ids = x["ids"].masked_fill(~x["mask"], self.padding)
        # Pooling by the largest id or the last position expects the full context length.
        ids = F.pad(ids, (0, self.preprocessing.size - ids.shape[1]), value=self.padding)
        if not hasattr(self.network, "forward_intermediates"):  # towers of transformers
            return Features(self.network(ids))
        out = self.network.forward_intermediates(ids, output_fmt="NLC")  # type: ignore[operator]
        return Features(out["text_features"], list(out["text_intermediates"]))


def read_open_clip(model: str, weights: str, size: int | None) -> Any:
    """Build an open_clip model with separate towers.

    Args:
        model: See `OpenCLIPVision`.
        weights: See `OpenCLIPVision`.
        size: See `OpenCLIPVision`.

    Raises:
        ValueError: See `OpenCLIPVision`.
    """
    library = require("open_clip", "open_clip")
    name = schema(model)
    hosted, file = name != model, Path(weights).suffix != "" or Path(weights).is_file()
    if not hosted:
        if model not in library.list_models():
            raise ValueError(f"open_clip: there is no model {model!r}{closest(model, library.list_models())}")
        tags = library.list_pretrained_tags_by_model(model)
        if weights != "random" and not file and weights not in tags:
            raise ValueError(
                f"open_clip: {model} has no weights {weights!r}{closest(weights, tags)} There are: "
                f"{', '.join(tags) or 'none'}; or `random`, or a weight file"
            )
    try:
        with quiet("open_clip"):
            own = not file and weights != "random"
            both: nn.Module = library.create_model(
                name,
                pretrained=weights if own and not hosted else None,
                load_weights=own,
                force_custom_text=True,
                force_image_size=size,
                pretrained_text=False,
            )
    except Exception as error:  # hubs, networks and models may raise any error
        raise ValueError(
            f"open_clip: cannot load {model!r} with weights {weights!r}: without a network, download them elsewhere "
            f"and set `weights` to the file, or `weights: random`. ({first_line(error)})"
        ) from error
    if file:
        load_weights(both, weights)
    return both


def schema(model: str) -> str:
    """The name of a model as open_clip reads it: local folders and hub names have a prefix."""
    if Path(model).is_dir():
        return f"local-dir:{model}"
    return f"hf-hub:{model}" if "/" in model else model
