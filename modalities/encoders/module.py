"""Any module as an encoder of a config: `{name: module, factory: package.module:function, ...}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import nn

from losses.registry import import_object
from modalities.encoders.base import Encoder, Preprocessing
from modalities.encoders.weights import load_weights
from modalities.encoders.wrapped import Layout, Pooling, Wrapped, WrappedSequence


class VisionModule(Wrapped):
    """Any module for images: `factory` builds it, and forward hooks capture its features. It needs no changes.

    Args:
        channels: Channels of the input.
        factory: `package.module:function`, or a class or its constructor, e.g. `my_lab.nets:Net.small`.
        keywords: Keywords of the factory.
        weights: A weight file (`.safetensors`, or `.pt` and `.pth` with tensors only), `package.module:function` that
            returns its path, `factory` if the factory loads the weights itself, or `random`. A frozen teacher requires
            one of these. None uses the module as the factory returns it.
        layers: Dotted paths of the layers whose outputs are the maps, e.g. `[layer2, layer4]`.
        pooled: Dotted path of the layer whose output is `pooled`; None means the output of the module. Maps are
            averaged over their pixels.
        pooling: If the output consists of tokens, `pooled` is their `mean` or the `first` one.
        layout: Whether channels are `first` or `last` in the outputs; None means first in maps `[B, C, H, W]` and last
            in tokens `[B, N, C]`.
        size: Input size in pixels.
        mean: Mean of each channel of the module's input ([0, 1] for uint8 images); None means that of the modality.
        std: Standard deviation of each channel; None means that of the modality.
    """

    def __init__(
        self,
        channels: int,
        *,
        factory: str,
        keywords: dict[str, Any] | None = None,
        weights: str | None = None,
        layers: tuple[str, ...] = (),
        pooled: str | None = None,
        pooling: Pooling = "mean",
        layout: Layout | None = None,
        size: Annotated[int, Ge(16)] = 224,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        form, example = Preprocessing.of(channels, size, mean, std), torch.zeros(2, channels, size, size)
        super().__init__(build_module(factory, keywords, weights), form, example, layers, pooled, pooling, layout)


class TextModule(WrappedSequence):
    """Any module for text. It receives int64 `ids [B, N]`, and `mask [B, N]` (True for tokens) if `forward` accepts it.

    Args:
        vocabulary: Vocabulary size of the modality's tokenizer; the module must have the same number of token ids.
        factory: See VisionModule.
        keywords: See VisionModule.
        weights: See VisionModule.
        layers: See VisionModule.
        pooled: See VisionModule.
        pooling: See VisionModule.
        layout: See VisionModule.
        length: Maximum number of tokens.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        factory: str,
        keywords: dict[str, Any] | None = None,
        weights: str | None = None,
        layers: tuple[str, ...] = (),
        pooled: str | None = None,
        pooling: Pooling = "mean",
        layout: Layout | None = None,
        length: Annotated[int, Ge(2)] = 128,
    ) -> None:
        form = Preprocessing(length, (0.0,), (1.0,))
        example = {"ids": torch.zeros(2, length, dtype=torch.long), "mask": torch.ones(2, length, dtype=torch.bool)}
        super().__init__(build_module(factory, keywords, weights), form, example, layers, pooled, pooling, layout)


class AudioModule(WrappedSequence):
    """Any module for audio. It receives `waveform [B, T]`, zero-padded, and `length [B]` if `forward` accepts it.

    A module that ignores `length` also averages over the padding, so use it with excerpts of equal length.

    Args:
        rate: Sample rate of the waveform in Hz.
        factory: See VisionModule.
        keywords: See VisionModule.
        weights: See VisionModule.
        layers: See VisionModule.
        pooled: See VisionModule.
        pooling: See VisionModule.
        layout: See VisionModule; `first` for 1-D convolutions.
    """

    def __init__(
        self,
        rate: int,
        *,
        factory: str,
        keywords: dict[str, Any] | None = None,
        weights: str | None = None,
        layers: tuple[str, ...] = (),
        pooled: str | None = None,
        pooling: Pooling = "mean",
        layout: Layout | None = None,
    ) -> None:
        example = {"waveform": torch.zeros(2, rate), "length": torch.full((2,), rate)}
        form = Preprocessing.of(1, 1)
        super().__init__(build_module(factory, keywords, weights), form, example, layers, pooled, pooling, layout)


def wrap(
    module: nn.Module,
    *,
    layers: Sequence[str] = (),
    pooled: str | None = None,
    pooling: Pooling = "mean",
    layout: Layout | None = None,
    channels: int = 3,
    size: int = 224,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    example: Any = None,
) -> Encoder:
    """Turn a module into an encoder, which returns `Features`, without changing the module.

    Args:
        module: The module.
        layers: Dotted paths of the layers whose outputs are the maps, e.g. `["layer2", "layer4"]`.
        pooled: Dotted path of the layer whose output is `pooled`; None means the output of the module.
        pooling: If the output consists of tokens, `pooled` is their `mean` or the `first` one.
        layout: Whether channels are `first` or `last` in the outputs; None means first in maps `[B, C, H, W]` and last
            in tokens `[B, N, C]`.
        channels: Channels of images.
        size: Input size of images in pixels.
        mean: Mean of each channel ([0, 1] for uint8 images); None means 0.
        std: Standard deviation of each channel; None means 1.
        example: For an input that is not an image: a batch of two, a tensor `[2, ...]` or a dictionary of tensors.

    Raises:
        ValueError: A layer does not exist, or the module does not run on the example.

    Example:
        >>> encoder = wcord.wrap(torchvision.models.resnet18(), layers=["layer2", "layer4"], pooled="avgpool")
        >>> encoder(torch.zeros(8, 3, 224, 224)).pooled.shape
        torch.Size([8, 512])
    """
    form = Preprocessing.of(channels, size, mean, std)
    if example is None:
        return Wrapped(module, form, torch.zeros(2, channels, size, size), layers, pooled, pooling, layout)
    return WrappedSequence(module, form, example, layers, pooled, pooling, layout)


def build_module(factory: str, keywords: Mapping[str, Any] | None, weights: str | None) -> nn.Module:
    """Call a factory and load weights; the arguments are those of `VisionModule`.

    Raises:
        ValueError: The factory cannot be imported or called, or does not return a module, or the weights do not match.
    """
    if ":" not in factory:
        raise ValueError(f"factory: {factory!r} is not package.module:function")
    try:
        module = import_object(factory)(**keywords or {})
    except TypeError as error:
        raise ValueError(
            f"factory: {factory} cannot be called with keywords {dict(keywords or {})}: {error}"
        ) from error
    if not isinstance(module, nn.Module):
        raise ValueError(f"factory: {factory} returned {type(module).__name__}, not a torch.nn.Module")
    if weights not in (None, "factory", "random"):
        path = str(weights)
        load_weights(module, import_object(path)() if ":" in path and not Path(path).exists() else path)
    return module
