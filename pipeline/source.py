"""A split of a packed data set as a run reads it: its shards, its task, and what is done about unusable samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal

from pipeline.errors import UserError
from pipeline.join import Join
from pipeline.shards import Dataset, Shard, load_dataset, local, verify_files
from pipeline.sidecar import Cache, member


@dataclass(frozen=True)
class Policy:
    """What is done about samples that cannot be used as they are.

    max_faulty: the largest fraction of samples that may be faulty; they are skipped. 0: the first one is an error.
    unpaired: of samples that lack a modality: `error`; `skip`; or `keep` those that lack only the teacher's, for the
    losses that need no teacher.
    """

    max_faulty: float = 0.0
    unpaired: Literal["error", "skip", "keep"] = "error"


@dataclass(frozen=True)
class Source:
    """A split of a packed data set, and which label of it is the task.

    visible_labels: fraction of the samples, drawn by key and seed, whose label is handed out; the others get -1.
    values: where the label is a mask, the pixel value of each class; () where it is one class a sample.
    """

    folder: Path
    shards: tuple[Shard, ...]
    label: str
    classes: int
    visible_labels: float = 1.0
    seed: int = 0
    policy: Policy = Policy()
    cache: Cache | None = None
    joined: tuple[Join, ...] = ()
    values: tuple[int, ...] = ()

    @property
    def mask(self) -> str | None:
        """The member that holds the mask."""
        return f"{self.label}.png" if self.values else None

    @property
    def samples(self) -> int:
        """Samples of the split."""
        return sum(shard.samples for shard in self.shards)

    @property
    def tolerant(self) -> bool:
        """Whether unreadable samples are skipped."""
        return self.policy.max_faulty > 0

    def beside(self, epoch: int) -> dict[str, tuple[Shard, str]]:
        """Shard -> its side-car, and the member of it that an epoch reads; nothing without a cache."""
        if self.cache is None:
            return {}
        view = member(epoch % self.cache.views)
        return {file: (sidecar, view) for file, sidecar in self.cache.sidecars.items()}

    def first(self) -> dict[str, int]:
        """Path of a shard -> how many samples lie before it, in the order of dataset.json."""
        ends = accumulate(shard.samples for shard in self.shards)
        return {
            str(self.folder / shard.file): end - shard.samples for shard, end in zip(self.shards, ends, strict=True)
        }


def check_split(folder: str | Path, split: str, key: str = "") -> Dataset:
    """The data set; UserError, which begins with the config's `key`, if its manifest lists no samples of a split."""
    dataset = load_dataset(folder)
    if dataset.samples(split) == 0:
        known = ", ".join(f"{name} ({dataset.samples(name)} samples)" for name in dataset.splits) or "none"
        raise UserError(f"{key}{folder}: split `{split}` has no samples; splits of this data set: {known}.")
    return dataset


def open_split(
    folder: str | Path,
    split: str,
    label: str,
    visible_labels: float = 1.0,
    seed: int = 0,
    policy: Policy = Policy(),
    join: Sequence[str] = (),
) -> Source:
    """Check that a split of a packed data set is there and whole, without reading it.

    A data set without any classes has 0 of them, and all its samples are unlabelled. Raises UserError for a data set
    that is not packed, a split without samples, a label that it does not have, and, unless faults are to be skipped, a
    missing shard or one of the wrong size. join: other data sets whose members complete the samples by key.
    """
    dataset = check_split(folder, split)
    if label not in dataset.classes and (dataset.classes or label != "label"):
        known = ", ".join(dataset.classes) or "none"
        raise UserError(f"{folder}: data.label: no label `{label}` in this data set; it has: {known}.")
    shards = tuple(dataset.splits[split])
    joined = tuple(Join(other, policy.max_faulty > 0) for other in join)
    if label in dataset.masks and f"{label}.png" not in dataset.fields:
        raise UserError(f"{folder}: data.label: the mask `{label}` needs members {label}.png, and no sample has one.")
    classes, values = len(dataset.classes.get(label, [])), tuple(dataset.masks.get(label, ()))
    source = Source(local(folder), shards, label, classes, visible_labels, seed, policy, None, joined, values)
    if not source.tolerant:
        verify_files(source.folder, shards)
    return source
