"""Shared code of encoders from other libraries: import, fewer messages, input channels, and measured sizes."""

from __future__ import annotations

import difflib
import importlib
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import grad

from losses import Features
from modalities.encoders.base import Encoder, Preprocessing


def require(module: str, extra: str) -> Any:
    """Import a library that only some encoders require.

    Args:
        module: Its module.
        extra: The extra of wcord that installs it.

    Raises:
        ValueError: It is not installed or cannot be imported. The message contains the pip command.
    """
    try:
        with quiet(module):
            return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # torchvision with a mismatched torch raises RuntimeError
        raise ValueError(
            f"this encoder requires {module}: pip install 'wcord[{extra}]' ({first_line(error)})"
        ) from None


@contextmanager
def quiet(library: str) -> Iterator[None]:
    """Silence a library's warnings and log messages below errors; the encoder reports important ones in one line."""
    loggers = [logging.getLogger(name) for name in (library, "huggingface_hub")]
    root, before = logging.getLogger(), [logger.level for logger in loggers]
    handler_level = root.level
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        if library == "open_clip":  # it logs to the root logger
            root.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
        root.setLevel(handler_level)


def closest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown model of a library: up to three similar names."""
    similar = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f", did you mean {' or '.join(map(repr, similar))}?" if similar else ""


def preprocessing(
    channels: int, size: int, mean: Iterable[float], std: Iterable[float], crop: float = 1.0
) -> Preprocessing:
    """The preprocessing of a model. Input without 3 channels stays in the units of its modality.

    Args:
        channels: Channels of the input.
        size: Side of the input in pixels.
        mean: Mean of the three channels of the model.
        std: Standard deviation, likewise.
        crop: See `Preprocessing`.
    """
    if channels != 3:
        return Preprocessing.of(channels, size, crop=crop)
    return Preprocessing.of(channels, size, tuple(mean), tuple(std), crop)


def adapt_input(network: nn.Module, channels: int, name: str) -> None:
    """Adapt a network with 3 input channels to another number of input channels; see `fold_channels`.

    Args:
        network: The network, changed in place.
        channels: New number of channels.
        name: The model, for the message.

    Raises:
        ValueError: There is no first convolution with 3 input channels.
    """
    if channels == 3:
        return
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3), None)
    if first is None or first.groups != 1:
        raise ValueError(
            f"{name} has no first convolution of 3 channels to adapt to {channels}. For depth, `input: image` of the "
            "modality has 3 channels."
        )
    first.weight = nn.Parameter(fold_channels(first.weight.detach(), channels))
    first.in_channels = channels
    for part in network.modules():  # models that check their input
        if getattr(part, "num_channels", None) == 3:
            part.num_channels = channels  # type: ignore[assignment]


def fold_channels(weight: Tensor, channels: int) -> Tensor:
    """Adapt the weights of a first convolution to another number of input channels, as timm does.

    For one channel, they are summed. For other numbers, they are repeated and scaled, which keeps the mean of the
    output about the same.

    Args:
        weight: The weights, `[out, in, ...]`.
        channels: New number of input channels.
    """
    if channels == 1:
        return weight.sum(1, keepdim=True)
    before = weight.shape[1]
    return weight[:, [i % before for i in range(channels)]] * (before / channels)


def linear_head(network: nn.Module) -> str | None:
    """The path of the last linear layer of a network; None if it has none."""
    return next((path for path, m in reversed(list(network.named_modules())) if isinstance(m, nn.Linear)), None)


def freeze_unused(encoder: Encoder, example: Any, failure: str) -> Features:
    """Freeze the parameters that `pooled` does not depend on.

    Args:
        encoder: The encoder, in training mode afterwards.
        example: A batch of one.
        failure: Start of the error message.

    Returns:
        The features of the example. Their sizes are the encoder's output sizes, for which libraries have many names.

    Raises:
        ValueError: The encoder does not run on the example.
    """
    parameters = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    try:
        with torch.enable_grad():
            features: Features = encoder.eval()(example)
            frozen = not features.pooled.requires_grad
            pooled = features.pooled.sum()
            used = [None] * len(parameters) if frozen else grad(pooled, parameters, allow_unused=True)
    except Exception as error:  # third-party networks may raise any error
        raise ValueError(f"{failure}: {error}") from error
    encoder.train()
    for parameter, gradient in zip(parameters, used, strict=True):
        parameter.requires_grad_(gradient is not None)
    return features


def measure(encoder: Encoder, example: Any, failure: str) -> None:
    """Set `dim` and `map_channels` of an encoder by running it on an example, and freeze unused parameters.

    Args:
        encoder: The encoder.
        example: A small batch.
        failure: Start of the error message.

    Raises:
        ValueError: The encoder does not run on the example.
    """
    features = freeze_unused(encoder, example, failure)
    encoder.dim = features.pooled.shape[1]
    encoder.map_channels = features.map_channels


def measure_image(encoder: Encoder, name: str) -> None:
    """`measure` on a black image of the encoder's input size."""
    size, channels = encoder.preprocessing.size, encoder.mean.shape[1]
    black = torch.zeros(1, channels, size, size, device=encoder.mean.device)
    measure(encoder, black, f"{name} does not run on an image of {size} x {size}")


class LibraryEncoder(Encoder):
    """An encoder from a library by model name. An exported student needs the library, but not its weights."""

    def portable(self, spec: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Fix the size, drop the source of the weights, and copy configs of a local model; see `Encoder.portable`."""
        found = {**spec, "weights": "random"}
        if self.reads_pictures:
            found["size"] = self.preprocessing.size
        if (local := Path(str(spec.get("model")))).is_dir():
            (folder / "encoder").mkdir(exist_ok=True)
            for config in local.glob("*.json"):
                (folder / "encoder" / config.name).write_bytes(config.read_bytes())
            found["model"] = "./encoder"
        return found


def first_line(error: Exception) -> str:
    """The first line of a library's error message, which can be a page long."""
    return (str(error).strip() or type(error).__name__).split("\n")[0]
