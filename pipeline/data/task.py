"""The task: reads the label or mask of a sample, if the label fraction includes it, and its group."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.common.hashing import digest
from pipeline.data.decoding import meta_of, place_of, sample_error
from pipeline.data.label_value import ForeignLabel
from pipeline.data.masks import read_mask
from pipeline.data.shard_reader import Sample


@dataclass(frozen=True)
class Task:
    """The label of a dataset that is the task, and the fraction of samples whose label is used.

    Args:
        label: Name of the label: `label` (in `label.txt`), a label in `meta.json`, or a mask.
        classes: Number of classes; 0 if all samples are unlabelled.
        values: Pixel value of each class of a mask; () for one class per sample.
        visible: Fraction of samples whose label is used, chosen by a hash of key and seed.
        seed: Random seed of this choice.
        foreign: Location of the label in foreign shards.
        renumbered: Class in this dataset -> class in the first dataset of a mixture; () if they are the same.
    """

    label: str
    classes: int
    values: tuple[int, ...] = ()
    visible: float = 1.0
    seed: int = 0
    foreign: ForeignLabel | None = None
    renumbered: tuple[int, ...] = ()

    @property
    def mask(self) -> str | None:
        """The member that contains the mask; None if the task is not a mask."""
        return f"{self.label}.png" if self.values else None

    @property
    def members(self) -> frozenset[str]:
        """The members from which label and group are read."""
        own = self.mask or (self.foreign.value.member if self.foreign else "label.txt")
        return frozenset({"label.txt", "meta.json", own})

    def read(self, raw: Sample, meta: Mapping[str, Any]) -> Sample:
        """Read the label and the group of a raw sample.

        Args:
            raw: The raw sample.
            meta: Its `meta.json`.

        Returns:
            `label`, a class index, and `group`, a 63-bit hash. Each is -1 if unknown.

        Raises:
            SampleError: The label is not a class.
        """
        group = meta.get("group")
        number = -1 if group is None else digest(str(group)) >> 1
        if self.classes == 0 or self.mask:
            return {"label": -1, "group": number}
        if self.foreign:
            label = self._read_foreign(raw, self.foreign)
            return {"label": self._shown(raw, label), "group": number}
        if self.label == "label":
            text = raw.get("label.txt", b"-1").decode("ascii", "replace").strip()
        else:
            labels = meta.get("labels", {})
            text = str(labels.get(self.label, -1)) if isinstance(labels, dict) else f"labels: {labels}"
        label = int(text) if re.fullmatch(r"-?\d{1,9}", text) else -2
        if not -1 <= label < self.classes:
            raise sample_error(
                raw,
                "label",
                f"{place_of(raw)}: label `{text[:40]}` is not a class index in 0..{self.classes - 1}; "
                "run `wcord check` on the dataset and pack it again.",
            )
        return {"label": self._shown(raw, label), "group": number}

    def _shown(self, raw: Sample, label: int) -> int:
        """The class used in training; -1 if unlabelled or hidden."""
        if label < 0 or not self.shows(raw):
            return -1
        return self.renumbered[label] if self.renumbered else label

    def _read_foreign(self, raw: Sample, foreign: ForeignLabel) -> int:
        member = foreign.value.member
        try:
            return foreign.index(raw[member]) if member in raw else -1
        except ValueError as error:
            message = f"{place_of(raw)}: {member}: {error}. Correct data.label or data.classes."
            raise sample_error(raw, "label", message) from None

    def read_mask(self, raw: Sample) -> np.ndarray | None:
        """Read the mask of a raw sample.

        Returns:
            The class of each pixel, int32 `[H, W]`; None if the sample has no mask or it is hidden.

        Raises:
            SampleError: The member is not a mask.
        """
        member = self.mask
        if member not in raw or not self.shows(raw):
            return None
        try:
            return read_mask(raw[member], self.values)
        except ValueError as error:
            message = f"{place_of(raw)}: {member}: {error}. Run `wcord check` on the dataset."
            raise sample_error(raw, member, message) from None

    def labels(self, raw: Sample) -> bool:
        """Whether a raw sample has a visible label, or a visible mask with at least one labelled pixel."""
        mask = self.read_mask(raw) if self.mask else None
        return self.read(raw, meta_of(raw))["label"] >= 0 or (mask is not None and bool((mask >= 0).any()))

    def shows(self, raw: Sample) -> bool:
        """Whether the label of a raw sample is used, if it has one."""
        return digest(f"label/{self.seed}/{raw['__key__']}") / 2**64 < self.visible
