"""The contract of a modality: decode bytes, augment, collate, build encoders, and render a picture for reports."""

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


FEW_READINGS = 0.2
"""Median coverage below which a warning is logged."""


@dataclass(frozen=True)
class Caption:
    """Text and audio shown next to a picture in a report.

    Args:
        text: One line of text.
        colours: CSS colours from low to high if the colours of the picture encode the quantity in `text`.
        sound: The bytes of an MP3 file; empty if there is none.
    """

    text: str = ""
    colours: tuple[str, ...] = ()
    sound: bytes = b""


class Modality(ABC):
    """Everything that the program needs to know about one kind of data. Subclass it to add a modality.

    A config refers to it as `modality: depth`, or `{name: depth, near: 0.2}` with keywords of the constructor, which
    are validated against their annotations. An instance must be small and picklable, since it is sent to the data
    loader workers.

    Example:
        ```python
        @dataclass(frozen=True, kw_only=True)
        class Thermal(Modality):
            name: ClassVar[str] = "thermal"
            fields: ClassVar[tuple[str, ...]] = ("thermal.png",)
            ...  # decode, augment, encoder, picture
        ```
    """

    name: ClassVar[str]
    """The name in configs, e.g. `depth`."""
    fields: ClassVar[tuple[str, ...]]
    """Shard members to read, in order of preference, e.g. `("rgb.jpg", "rgb.png")`. A sample needs one of them.
    """
    field: str | None = None
    """Field to read instead of that in `fields`, in the same formats. Declare it as a keyword to let configs set it."""
    revision: ClassVar[int] = 1
    """Increase it when `decode` or `augment` return other values than before: cached features of an earlier
    revision are then rejected."""
    encoders: ClassVar[Mapping[str, type[Encoder]]] = {}
    """Name in configs -> encoder class. Configs are validated against its keyword-only parameters."""

    @property
    def members(self) -> tuple[str, ...]:
        """The shard members that this instance reads: `fields`, or their extensions with `field` as the name."""
        if self.field is None:
            return self.fields
        return tuple(f"{self.field}.{member.partition('.')[2]}" for member in self.fields)

    @property
    def random(self) -> bool:
        """Whether `augment` draws random numbers. If not, it gets no `rng` in training either, which saves time."""
        return True

    @abstractmethod
    def decode(self, data: bytes, meta: Mapping[str, Any]) -> Any:
        """Decode one shard member.

        Args:
            data: The bytes of the member.
            meta: The contents of the sample's `meta.json`; `{}` if it has none.

        Returns:
            Any value that `augment` and `picture` accept.

        Raises:
            ValueError: The bytes are not valid for this modality. The message states what was found and what is
                expected.
        """

    @abstractmethod
    def augment(self, value: Any, geometry: Geometry, size: int, rng: np.random.Generator | None) -> Tensor:
        """Apply the geometry of the sample and the modality's own photometric augmentation.

        Args:
            value: A result of `decode`. It must not be modified.
            geometry: Crop and flip, drawn once per sample and shared by all modalities and masks.
            size: Input size of the encoder: pixels of an image, time steps of a time series. Others may ignore it.
            rng: Source of randomness; None in evaluation, which must be deterministic, and if `random` is False.

        Returns:
            The input of the encoder, for images `[C, size, size]`: uint8 in 0..255 for photos (the encoder scales it
            to [0, 1]), int64 for token ids, float32 for everything else.
        """

    def collate(self, values: Sequence[Tensor]) -> Any:
        """Make a batch from tensors that `augment` returned. By default, they are stacked to `[B, ...]`.

        Args:
            values: B tensors. Override this method if their shapes differ.

        Returns:
            The input of the encoder: a tensor, or a dictionary of tensors.
        """
        return torch.stack(list(values))

    def coverage(self, batch: Any) -> Tensor | None:
        """The fraction of each input that contains valid values. The default, None, is for data without missing parts.

        Args:
            batch: A result of `collate` for B samples.

        Returns:
            float `[B]` in [0, 1], or None.
        """
        return None

    @abstractmethod
    def encoder(self, spec: Mapping[str, Any]) -> Encoder:
        """Build an encoder as specified in a config.

        Args:
            spec: The name and settings, e.g. `{"name": "cnn5", "width": 32}`.

        Raises:
            ValueError: The modality does not have this encoder or setting. The message lists the valid ones.
        """

    def portable(self, spec: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Return a spec that rebuilds this modality from files in `folder`, for an exported student.

        Args:
            spec: The spec that this instance was built from.
            folder: Folder of the student. A modality that reads files or uses a model hub copies what it needs into a
                subfolder and refers to it as `./subfolder` in the spec.
        """
        return dict(spec)

    @property
    def preprocess_script(self) -> Path | None:
        """A Python file that reads inputs of an exported student without wcord; None by default.

        `wcord export` copies it to `preprocess.py`, next to `predict.py` and `load.py`, which call its two functions:

        - `read(data: bytes) -> dict[str, np.ndarray]`: one file as the evaluation sees it, that is `decode` and
          `augment` without rng. Keys are the name of the modality, or the keys of the dictionary of `collate`.
        - `batch(samples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]`: does what `collate` does.

        The settings of the modality and the input size are in `preprocessing.json` in the folder of the script. The
        export compares both functions with the modality on samples of the dataset.
        """
        return None

    @abstractmethod
    def picture(self, value: Any) -> np.ndarray:
        """Render a decoded value for a report: uint8 RGB `[H, W, 3]`."""

    def caption(self, value: Any) -> Caption:
        """The caption of `picture`; empty by default."""
        return Caption()
