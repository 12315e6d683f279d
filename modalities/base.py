"""The one class that someone who adds a modality writes: bytes to tensors, encoders, and a picture for people."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from losses import Features
from modalities.encoders.base import Encoder
from modalities.geometry import Geometry

__all__ = ["Caption", "Encoder", "Features", "Geometry", "Modality"]


@dataclass(frozen=True)
class Caption:
    """What a person reads and hears beside a picture.

    text: one line. colours: CSS colours from low to high, where the picture's mean the quantity in `text`. sound: MP3.
    """

    text: str = ""
    colours: tuple[str, ...] = ()
    sound: bytes = b""


class Modality(ABC):
    """What the program knows about one kind of data.

    A config names it (`modality: depth`, or `{name: depth, near: 0.2}` with the constructor's own keywords, which
    are validated against their annotations). An instance is small and picklable: it travels to loader workers.
    """

    name: ClassVar[str]
    fields: ClassVar[tuple[str, ...]]
    """Shard members it can read, in order of preference; a sample needs one of them, e.g. `("rgb.jpg", "rgb.png")`."""
    field: str | None = None
    """Another field than `fields` name, in the same formats; a keyword of modalities that let a config choose it."""
    encoders: ClassVar[Mapping[str, type[Encoder]]] = {}
    """Encoders by the name that a config gives; their keyword-only parameters are what it is validated against."""

    @property
    def members(self) -> tuple[str, ...]:
        """The members that this instance reads: `fields`, or `field` with their suffixes."""
        if self.field is None:
            return self.fields
        return tuple(f"{self.field}.{member.partition('.')[2]}" for member in self.fields)

    @abstractmethod
    def decode(self, data: bytes, meta: Mapping[str, Any]) -> Any:
        """Turn the bytes of one member into a value; `meta` is the sample's `meta.json`, `{}` without one.

        Raises ValueError, with what was wrong and what was expected, for bytes that are not of this modality.
        """

    @abstractmethod
    def augment(self, value: Any, geometry: Geometry, size: int, rng: np.random.Generator | None) -> Tensor:
        """Replay the sample's geometry, then the modality's own photometric changes, into a tensor for the encoder.

        geometry: drawn once for the whole sample, the same for every modality and mask.
        size: the encoder's input size in pixels (`[C, size, size]`); modalities without one ignore it.
        rng: None in evaluation: then nothing may be random.
        Images are uint8 in 0..255, which the encoder scales to [0, 1]; token ids are int64; everything else is float32.
        """

    def collate(self, values: Sequence[Tensor]) -> Any:
        """Make a batch of `augment`'s tensors; the default stacks them to `[B, ...]`."""
        return torch.stack(list(values))

    @abstractmethod
    def encoder(self, spec: Mapping[str, Any]) -> Encoder:
        """Build the encoder that a config describes, e.g. `{"name": "cnn5", "width": 32}`.

        Raises ValueError for a name or a setting that this modality does not offer, naming those it does.
        """

    def portable(self, spec: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """The spec that rebuilds this modality from what is in `folder`: a student is taken away in one.

        spec: what it was built from. A modality that reads files or a hub writes what it needs into a sub-folder and
        names it `./sub-folder`.
        """
        return dict(spec)

    @abstractmethod
    def picture(self, value: Any) -> np.ndarray:
        """Show a decoded value to a person: uint8 RGB `[H, W, 3]`."""

    def caption(self, value: Any) -> Caption:
        """What stands beside the picture of a decoded value; by default nothing."""
        return Caption()
