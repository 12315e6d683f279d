"""Protocols for the settings that this wing reads. `pipeline.config.settings.Config` satisfies them structurally."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol


class SourceSettings(Protocol):
    """One dataset of a config."""

    @property
    def path(self) -> str:
        """Folder, URL or pattern of the shards; a list is joined by `::`."""

    @property
    def weight(self) -> float:
        """Share of the samples in a mixture, relative to the other weights."""

    @property
    def label(self) -> str:
        """The label that is the task."""

    @property
    def extensions(self) -> Mapping[str, Sequence[str]]:
        """Field -> extensions in foreign shards, as given in the config."""

    @property
    def class_names(self) -> Sequence[str]:
        """Class names in order, as given in the config."""

    @property
    def names(self) -> Mapping[str, str]:
        """Class name in this dataset -> class name in the first dataset."""


class DataSettings(Protocol):
    """The config's section `data`."""

    @property
    def sources(self) -> Sequence[SourceSettings]:
        """The datasets: one, or those of a mixture."""

    @property
    def mixed(self) -> bool:
        """Whether samples are drawn by weight or with replacement."""

    @property
    def sampling(self) -> Literal["once", "with_replacement"]:
        """How the samples of a dataset are drawn."""

    @property
    def epoch_samples(self) -> int | None:
        """Samples per epoch of a mixture; None for the total number of samples."""

    @property
    def label_fraction(self) -> float:
        """Fraction of the samples whose label is used."""

    @property
    def stages(self) -> Sequence[str]:
        """User-defined stages, each `package.module:name`."""

    @property
    def join(self) -> Sequence[str]:
        """Datasets whose members are joined by key."""

    @property
    def max_faulty(self) -> float:
        """Maximum fraction of faulty samples."""

    @property
    def max_pixels(self) -> int:
        """Maximum number of pixels of an image."""

    @property
    def crop(self) -> tuple[float, float]:
        """Smallest and largest area of the crop, as fractions of the image."""

    @property
    def flip(self) -> bool:
        """Whether to mirror half of the samples."""

    @property
    def pad(self) -> tuple[int, int] | None:
        """(p, n): shift by up to p pixels at an image size of n."""

    @property
    def unpaired(self) -> Literal["error", "skip", "keep"]:
        """What to do with samples that lack a modality."""


class Settings(Protocol):
    """A config."""

    @property
    def seed(self) -> int:
        """Random seed."""

    @property
    def data(self) -> DataSettings:
        """The section `data`."""
