"""An encoder around any `nn.Module`: forward hooks capture its features, so the module needs no changes."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from losses import Features
from modalities.encoders.base import Encoder, Preprocessing
from modalities.encoders.library import measure
from modalities.encoders.text_transformer import pool

Pooling = Literal["mean", "first"]
Layout = Literal["first", "last"]

OUTPUTS = ("pooler_output", "pooled", "features", "last_hidden_state")
"""Keys under which a mapping contains the output tensor, in order of preference."""
ALIASES = {"ids": "input_ids", "mask": "attention_mask", "waveform": "input_values"}
"""Key of a batch -> name of the same argument in transformers."""


class Taken(dict[str, Any]):
    """Path of a layer -> its latest output. A separate class, since torch.export copies attributes that are dicts."""


class Wrapped(Encoder):
    """A module with forward hooks at some of its layers.

    The output of a layer may be a tensor, a tuple or a mapping. Of a tuple, the first tensor is used; of a mapping,
    `pooler_output`, `pooled`, `features`, `last_hidden_state` or its only tensor. For a map `[B, C, H, W]`, `pooled` is
    its spatial mean; for tokens `[B, N, C]`, `pooling` defines it. If a layer runs several times, its last output is
    used. Parameters that `pooled` does not depend on are frozen, since DDP expects gradients for all trainable ones.

    If a batch is a mapping, such as `ids` and `mask` of text, those entries are passed by keyword for which the
    module's `forward` has a parameter of the same name (or `input_ids`, `attention_mask`, `input_values`). If there are
    none, only the first tensor is passed.

    Args:
        network: The module.
        preprocessing: The input format.
        example: A batch of two, to measure the sizes of the features.
        layers: Dotted paths of the layers whose outputs are the maps.
        pooled: Dotted path of the layer whose output is `pooled`; None means the output of the module.
        pooling: `mean` over tokens, or the `first` token. Padding is excluded if the batch has a mask of the tokens.
        layout: Whether the channels of outputs with three and four dimensions are `first` or `last`; None means first
            in maps `[B, C, H, W]` and last in tokens `[B, N, C]`.

    Raises:
        ValueError: A layer does not exist, the module does not run on the example, or an output is not as described.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        example: Any,
        layers: Sequence[str] = (),
        pooled: str | None = None,
        pooling: Pooling = "mean",
        layout: Layout | None = None,
    ) -> None:
        super().__init__(preprocessing)
        self.network, self.layers, self.pooled = network, tuple(layers), pooled
        self.pooling, self.layout = pooling, layout
        self.accepted = set(inspect.signature(network.forward).parameters)
        self.taken = Taken()
        for path in dict.fromkeys([*self.layers, *([] if pooled is None else [pooled])]):
            # The hook does not refer to this encoder, so a copy of the encoder gets its own hooks.
            find_layer(network, path).register_forward_hook(partial(_take, self.taken, path))
        measure(self, example, f"module: {type(network).__name__} does not run on an example")
        self.channels_last = self._runs_channels_last(example)

    def forward(self, x: Any) -> Features:
        self.taken.clear()
        mask = None
        if isinstance(x, Tensor):
            x = self.normalise(x) if x.ndim == 4 else x
            out = self.network(x if self.channels_last else x.contiguous())
        else:
            mask = x.get("mask")
            named = {name: value for key, value in x.items() if (name := self._argument(key)) is not None}
            out = self.network(**named) if named else self.network(next(iter(x.values())))
        maps = [self._map(path) for path in self.layers]
        pooled = self._pool(out if self.pooled is None else self._output(self.pooled), mask)
        self.taken.clear()  # keeps no activations alive
        return Features(pooled, maps)

    def portable(self, spec: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Drop the weight file from the spec, since the folder contains all weights; see `Encoder.portable`."""
        return {**spec, "weights": "random"}

    def _argument(self, key: str) -> str | None:
        return next((name for name in (key, ALIASES.get(key)) if name in self.accepted), None)

    def _output(self, path: str) -> Any:
        if path not in self.taken:
            raise ValueError(f"the layer {path!r} is not called by the module's forward; choose another layer")
        return self.taken[path]

    def _map(self, path: str) -> Tensor:
        found = self._ordered(tensor_of(self._output(path), path))
        if found.ndim not in (3, 4):
            raise ValueError(f"the output of layer {path!r} is {_shape(found)}, but a map has 3 or 4 dimensions")
        return found

    def _pool(self, value: Any, mask: Tensor | None) -> Tensor:
        found = self._ordered(tensor_of(value, self.pooled or "the module"))
        if found.ndim == 4:
            return found.mean((2, 3))
        if found.ndim == 3:
            if self.pooling == "mean" and mask is not None and mask.shape == found.shape[:2]:
                return pool(found, mask, "mean")
            return found[:, 0] if self.pooling == "first" else found.mean(1)
        if found.ndim != 2:
            name = self.pooled or "the module"
            raise ValueError(f"the output of {name} is {_shape(found)}; expected 2 to 4 dimensions")
        return found

    def _ordered(self, x: Tensor) -> Tensor:
        """Move channels to the first dimension of maps and the last one of tokens."""
        if x.ndim == 4 and self.layout == "last":
            return x.permute(0, 3, 1, 2)
        return x.transpose(1, 2) if x.ndim == 3 and self.layout == "first" else x

    def _runs_channels_last(self, example: Any) -> bool:
        """Whether the module runs in the memory format that is faster for convolutions: `view` may not support it."""
        self.channels_last = True
        if not (isinstance(example, Tensor) and example.ndim == 4):
            return True
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        training = self.training
        try:
            with torch.no_grad():
                self.eval()(example.contiguous(memory_format=torch.channels_last))
        except Exception:  # third-party networks may raise any error
            self.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            return False
        finally:
            self.train(training)
        return True


class WrappedSequence(Wrapped):
    """The same for an input that is not an image."""

    reads_pictures: ClassVar[bool] = False


def find_layer(module: nn.Module, path: str) -> nn.Module:
    """Find a layer by its dotted path.

    Raises:
        ValueError: The layer does not exist. The message suggests the closest paths.
    """
    known = {name: layer for name, layer in module.named_modules() if name}
    if path in known:
        return known[path]
    close = difflib.get_close_matches(path, known, n=3)
    children = ", ".join(dict(module.named_children()))
    hint = f"did you mean {' or '.join(close)}?" if close else f"its children are: {children}"
    raise ValueError(f"module: {type(module).__name__} has no layer {path!r}; {hint}")


def tensor_of(value: Any, where: str) -> Tensor:
    """The tensor of an output; see `Wrapped`.

    Args:
        value: A tensor, tuple, list or mapping.
        where: Name of the layer, for messages.

    Raises:
        ValueError: There is no tensor, or a mapping has several tensors, none of them with a known name.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        tensors = {key: entry for key, entry in value.items() if isinstance(entry, Tensor)}
        known = [key for key in OUTPUTS if key in tensors] or (list(tensors) if len(tensors) == 1 else [])
        if not known:
            raise ValueError(
                f"the output of {where} is a mapping with the tensors {list(tensors)}, none of them named "
                f"{', '.join(OUTPUTS)}; set `pooled` to a layer"
            )
        return tensors[known[0]]
    found = next((entry for entry in value if isinstance(entry, Tensor)), None) if isinstance(value, Sequence) else None
    if found is None:
        raise ValueError(f"the output of {where} is {type(value).__name__} without a tensor; choose another layer")
    return found


def _take(taken: Taken, path: str, module: nn.Module, arguments: Any, output: Any) -> None:
    taken[path] = output


def _shape(x: Tensor) -> str:
    return f"a tensor of shape {list(x.shape)}"
