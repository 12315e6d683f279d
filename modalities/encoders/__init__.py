"""The encoders by modality, and the function that builds one from a config."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from losses.registry import find, near
from modalities.encoders.base import Encoder, Preprocessing
from modalities.encoders.cnn5 import CNN5
from modalities.encoders.log_mel_cnn import LogMelCNN
from modalities.encoders.module import AudioModule, TextModule, VisionModule
from modalities.encoders.named import CIFAR, IMAGENET
from modalities.encoders.open_clip_models import OpenCLIPText, OpenCLIPVision
from modalities.encoders.pretrained import PretrainedVision
from modalities.encoders.pretrained_audio import PretrainedAudio
from modalities.encoders.pretrained_text import PretrainedText
from modalities.encoders.resnet import ResNet
from modalities.encoders.text_transformer import TextTransformer
from modalities.encoders.timm_models import Timm
from modalities.encoders.torchvision_models import Torchvision

__all__ = [
    "AUDIO_ENCODERS",
    "IMAGE_ENCODERS",
    "TEXT_ENCODERS",
    "Encoder",
    "Preprocessing",
    "build",
]

IMAGE_ENCODERS: dict[str, type[Encoder]] = {
    **{"cnn5": CNN5, "resnet": ResNet, "transformers": PretrainedVision, "module": VisionModule},
    **{"timm": Timm, "torchvision": Torchvision, "open_clip": OpenCLIPVision},
    **CIFAR,
    **IMAGENET,
}
TEXT_ENCODERS: dict[str, type[Encoder]] = {
    "text_transformer": TextTransformer,
    "transformers": PretrainedText,
    "open_clip": OpenCLIPText,
    "module": TextModule,
}
AUDIO_ENCODERS: dict[str, type[Encoder]] = {
    "log_mel_cnn": LogMelCNN,
    "transformers": PretrainedAudio,
    "module": AudioModule,
}


def build(
    encoders: Mapping[str, type[Encoder]],
    spec: Mapping[str, Any],
    input_size: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Encoder:
    """Build the encoder that `spec` describes.

    Args:
        encoders: Name -> encoder class of the modality.
        spec: `{"name": one of encoders or package.module:Class, **its keywords}`. Every encoder also accepts `weights:
            random`, which confirms that a frozen teacher with random weights is intended.
        input_size: First argument of the constructor: channels of an image, sample rate in Hz of audio, or vocabulary
            size of text.
        mean: Mean of each channel of the modality, used if the encoder has this keyword and `spec` does not set it.
        std: Standard deviation of each channel, used likewise.

    Raises:
        ValueError: The name or a keyword is unknown. The message lists the valid ones.
    """
    keywords = {name: value for name, value in spec.items() if name != "name"}
    if "name" not in spec:
        raise ValueError(f"encoder: the name is missing; choose one of {', '.join(encoders)}")
    encoder: Callable[..., Encoder] = find(spec["name"], encoders, Encoder, "encoder")
    offered = [p.name for p in inspect.signature(encoder).parameters.values() if p.kind is p.KEYWORD_ONLY]
    if "weights" not in offered and keywords.get("weights") == "random":
        del keywords["weights"]
    for name in keywords:
        if name not in offered:
            raise ValueError(f"encoder {spec['name']}: unknown setting {name!r}{near(name, offered)}")
    for name, default in (("mean", mean), ("std", std)):
        if default is not None and name in offered and keywords.get(name) is None:
            keywords[name] = default
    return encoder(input_size, **keywords)
