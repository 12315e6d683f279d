"""The encoders by modality, and how a config's description becomes one."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

from modalities.encoders.base import Encoder, Preprocessing
from modalities.encoders.cnn5 import CNN5
from modalities.encoders.log_mel_cnn import LogMelCNN
from modalities.encoders.named import CIFAR, IMAGENET
from modalities.encoders.pretrained import PretrainedVision
from modalities.encoders.pretrained_audio import PretrainedAudio
from modalities.encoders.pretrained_text import PretrainedText
from modalities.encoders.resnet import ResNet
from modalities.encoders.text_transformer import TextTransformer

__all__ = [
    "AUDIO_ENCODERS",
    "IMAGE_ENCODERS",
    "TEXT_ENCODERS",
    "Encoder",
    "Preprocessing",
    "build",
    "find",
    "import_class",
]

IMAGE_ENCODERS: dict[str, type[Encoder]] = {
    **{"cnn5": CNN5, "resnet": ResNet, "transformers": PretrainedVision},
    **CIFAR,
    **IMAGENET,
}
TEXT_ENCODERS: dict[str, type[Encoder]] = {"text_transformer": TextTransformer, "transformers": PretrainedText}
AUDIO_ENCODERS: dict[str, type[Encoder]] = {"log_mel_cnn": LogMelCNN, "transformers": PretrainedAudio}

Class = TypeVar("Class", bound=type)


def build(
    encoders: Mapping[str, type[Encoder]],
    spec: Mapping[str, Any],
    input_size: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Encoder:
    """Build what `spec` describes: `{"name": one of encoders or package.module:Class, **its keywords}`.

    input_size: of what the encoder reads: channels of an image, samples a second of a sound, token ids of a text.
    mean, std: the modality's own, where the encoder takes them and spec has none.
    Raises ValueError for an unknown name or keyword, naming those there are.
    """
    keywords = {name: value for name, value in spec.items() if name != "name"}
    if "name" not in spec:
        raise ValueError(f"encoder: no name given; there are {', '.join(encoders)}")
    encoder: Callable[..., Encoder] = find(spec["name"], encoders, Encoder, "encoder")
    offered = [p.name for p in inspect.signature(encoder).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for name in keywords:
        if name not in offered:
            raise ValueError(f"encoder {spec['name']}: no setting {name!r}{near(name, offered)}")
    for name, default in (("mean", mean), ("std", std)):
        if default is not None and name in offered and keywords.get(name) is None:
            keywords[name] = default
    return encoder(input_size, **keywords)


def find(name: str, known: Mapping[str, Class], base: Class, kind: str) -> Class:
    """The class of that name in `known`, or `package.module:Class`; ValueError names the known ones and a near miss."""
    if name in known:
        return known[name]
    if ":" in name:
        return import_class(name, base)
    raise ValueError(f"{kind}: there is no {name!r}{near(name, known)}; a class of your own is package.module:Class")


def import_class(path: str, base: Class) -> Class:
    """Import `package.module:Class`, which must be a subclass of `base`; ValueError says which part was not found."""
    module, _, name = path.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ValueError(f"{path}: cannot import {module} ({error}); is its folder on PYTHONPATH?") from error
    except AttributeError:
        raise ValueError(f"{path}: module {module} has no {name!r}") from None
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise ValueError(f"{path}: is not a subclass of {base.__module__}.{base.__name__}")
    return cast(Class, found)


def near(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the near miss, if any, and all that there are."""
    known = list(known)
    guess = difflib.get_close_matches(name, known, n=1)
    return (f", did you mean {guess[0]!r}?" if guess else ";") + f" There are: {', '.join(sorted(known)) or 'none'}"
