"""A dataset opened for a run: its splits with their shards and task, and the policy for unusable samples.

A little over 350 lines because of the docstrings of its public names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from pipeline.common.disk_errors import machine_fault
from pipeline.common.errors import UserError
from pipeline.data.dataset import Dataset, Layout, Shard
from pipeline.data.decoding import MAX_PIXELS, check_members, decode_view, sample_error
from pipeline.data.feature_cache import Cache, decode, member
from pipeline.data.join import Join
from pipeline.data.manifest import Load, load_dataset, local, verify_files
from pipeline.data.settings import Settings, SourceSettings
from pipeline.data.shard_reader import Sample, read_shard, slices
from pipeline.data.skipped import SampleError
from pipeline.data.task import Task
from pipeline.data.user_stages import UserStage
from pipeline.data.views import ViewSpec, required_members


@dataclass(frozen=True)
class Policy:
    """What to do with samples that cannot be used.

    Attributes:
        max_faulty: Maximum fraction of faulty samples, in [0, 1). They are skipped. With 0, the first one is an error.
        unpaired: What to do with samples that lack a modality: `error`, `skip`, or `keep`. `keep` uses those that lack
            only the teacher's modality, for the losses that need no teacher, and skips the others.
        max_pixels: Maximum number of pixels of an image; one with more is faulty.
    """

    max_faulty: float = 0.0
    unpaired: Literal["error", "skip", "keep"] = "error"
    max_pixels: int = MAX_PIXELS


STRICT = Policy()
"""The first sample that cannot be used raises an error."""


@dataclass(frozen=True)
class Source:
    """A split of a dataset, ready to be read.

    Args:
        layout: Folder of the shards, and where to find the samples in them.
        shards: The shards, in the order in which they are read.
        task: The label or mask.
        policy: What to do with samples that cannot be used.
        cache: Cached teacher features of the samples.
        joined: Datasets whose members are joined by key.
        offset: Index of the first sample: the number of samples in the preceding sources of a mixture.
        stages: User-defined stages.
        held: All members of the samples; the stages receive all of them.
    """

    layout: Layout
    shards: tuple[Shard, ...]
    task: Task
    policy: Policy = Policy()
    cache: Cache | None = None
    joined: tuple[Join, ...] = ()
    offset: int = 0
    stages: tuple[UserStage, ...] = ()
    held: frozenset[str] = frozenset()

    @property
    def folder(self) -> Path:
        """Local folder of the dataset."""
        return self.layout.folder

    @property
    def samples(self) -> int:
        """Number of samples of the split."""
        return sum(shard.samples for shard in self.shards)

    @property
    def tolerant(self) -> bool:
        """Whether unreadable samples are skipped."""
        return self.policy.max_faulty > 0

    def read(
        self, members: frozenset[str], start: int = 0, stop: int | None = None, epoch: int | None = None
    ) -> Iterator[Sample]:
        """Read raw samples, without joined members; see `read_range`.

        Args:
            members: The members to read.
            start: Index of the first sample.
            stop: Index of the last sample plus 1; None for the end of the split.
            epoch: The epoch that selects the cached teacher features; None to read none.

        Yields:
            Raw samples.
        """
        for shard, first, last in slices(self.shards, start, self.samples if stop is None else stop):
            yield from self.read_shard(shard, members, first, last, epoch)

    def read_shard(
        self, shard: Shard, members: frozenset[str], first: int, last: int, epoch: int | None
    ) -> Iterator[Sample]:
        """Read raw samples of one shard with the cached features of an epoch; see `read`.

        Args:
            shard: The shard.
            members: The members to read.
            first: Index of the first sample in the shard.
            last: Index of the last sample plus 1.
            epoch: The epoch that selects the cached teacher features; None to read none.
        """
        beside = None
        if self.cache is not None and epoch is not None and shard.file in self.cache.sidecars:
            beside = self.cache.sidecars[shard.file], member(epoch % self.cache.views)
        return read_shard(self.layout, shard, first, last, self._read_members(members), self.tolerant, beside)

    def _read_members(self, members: frozenset[str]) -> frozenset[str]:
        """The members to read: stages receive all members, not only those that the networks need."""
        return members | self.held if self.stages else members

    def complete(self, raw: Sample, members: frozenset[str]) -> Sample:
        """Add the members of joined datasets to a sample and apply the stages.

        Args:
            raw: The raw sample.
            members: The members to add.

        Raises:
            SampleError: A joined shard cannot be read, a stage drops the sample, or an image is too large.
            UserError: The machine fails: a full disk, no permission.
        """
        members = self._read_members(members)
        for other in self.joined:
            try:
                raw = other.complete(raw, members)
            except (OSError, ValueError) as error:  # noqa: PERF203
                if fault := machine_fault(error, other.folder):
                    raise fault from None
                raise sample_error(raw, "shard", f"{other.folder}: {error}. {other.cure}") from None
        for stage in self.stages:
            raw = stage(raw)
        check_members(raw, self.policy.max_pixels)
        return raw

    def seen(self, sight: ViewSpec) -> Iterator[Any]:
        """The inputs of a network, in the order of the shards, without augmentation. Unusable samples are skipped."""
        members = required_members(sight)
        for raw in self.read(members):
            with suppress(SampleError):
                yield decode_view(sight, self.complete(raw, members))

    def features(self) -> Iterator[dict[str, Tensor]]:
        """The cached teacher features of the first view, for the samples that have them."""
        for raw in self.read(frozenset(), epoch=0):
            if "__cached__" in raw:
                with suppress(ValueError):
                    yield decode(raw["__cached__"])[0]

    def labelled(self) -> bool:
        """Whether any sample has a visible label, or a visible mask with a labelled pixel. Stops at the first one."""
        members = self.task.members
        for raw in self.read(members):
            with suppress(SampleError):
                if self.task.labels(self.complete(raw, members)):
                    return True
        return False

    def first(self) -> dict[str, int]:
        """Path of each shard -> index of its first sample, in the order of `dataset.json`."""
        ends = accumulate((shard.samples for shard in self.shards), initial=self.offset)
        next(ends)
        return {str(shard.path(self.folder)): end - shard.samples for shard, end in zip(self.shards, ends, strict=True)}


@dataclass(frozen=True)
class OpenDataset:
    """A dataset and those joined to it. Each `dataset.json` is read once.

    Args:
        folder: Folder, URL or pattern, as in the config.
        place: Local folder of its files, which may not be downloaded yet.
        manifest: Content of its `dataset.json`.
        label: The label that is the task.
        policy: What to do with samples that cannot be used.
        stages: User-defined stages.
        others: Folder or URL, and manifest, of each dataset whose members are joined by key.
    """

    folder: str | Path
    place: Path
    manifest: Dataset
    label: str = "label"
    policy: Policy = Policy()
    stages: tuple[UserStage, ...] = ()
    others: tuple[tuple[str, Dataset], ...] = ()

    @classmethod
    def from_config(cls, config: Settings, load: Load = load_dataset) -> OpenDataset:
        """Open the dataset of a config, or the first one of a mixture.

        Args:
            config: The config.
            load: Loads a manifest.

        Raises:
            UserError: See `of_source`.
        """
        return cls.of_source(config, config.data.sources[0], load)

    @classmethod
    def of_source(cls, config: Settings, source: SourceSettings, load: Load = load_dataset) -> OpenDataset:
        """Open one of the datasets of a config.

        Args:
            config: The config.
            source: Its settings for this dataset.
            load: Loads a manifest.

        Raises:
            UserError: The dataset cannot be read, or its class names or a stage are invalid.
        """
        data = config.data
        policy = Policy(data.max_faulty, data.unpaired, data.max_pixels)
        opened = open_dataset(source.path, source.label, policy, data.join, load)
        manifest = opened.manifest.named(source.extensions).classed(source.label, source.class_names)
        return replace(opened, manifest=manifest, stages=tuple(UserStage(path) for path in data.stages))

    @property
    def classes(self) -> list[str]:
        """Class names of the task; [] if there are none."""
        return self.manifest.classes.get(self.label, [])

    @property
    def dense(self) -> bool:
        """Whether the label is a mask, with one class per pixel."""
        return self.label in self.manifest.masks

    @cached_property
    def _joined(self) -> tuple[Join, ...]:
        return tuple(Join(folder, manifest, self.policy.max_faulty > 0) for folder, manifest in self.others)

    def check_split(self, split: str, key: str = "") -> None:
        """Check that a split has samples.

        Args:
            split: The split.
            key: Prefix of the message, e.g. the config key.

        Raises:
            UserError: The manifest lists no samples of the split.
        """
        if self.manifest.samples(split) == 0:
            splits = self.manifest.splits
            known = ", ".join(f"{name} ({self.manifest.samples(name)} samples)" for name in splits) or "none"
            cure = (
                f" To hold out samples: wcord index SHARDS --out FOLDER --split {split}=0.2, then train on FOLDER."
                if self.manifest.extensions
                else ""
            )
            message = f"{key}{self.folder}: split `{split}` has no samples; splits of this dataset: {known}.{cure}"
            raise UserError(message)

    def split(self, split: str, visible_labels: float = 1.0, seed: int = 0) -> Source:
        """Open a split. Checks that its shards exist with the expected sizes, but does not read them.

        Args:
            split: The split.
            visible_labels: Fraction of the samples whose label is used, in (0, 1].
            seed: Random seed of the choice of these samples.

        Raises:
            UserError: The split has no samples, the dataset has no such label, or, unless faulty samples are skipped,
                a shard is missing or has the wrong size.
        """
        self.check_split(split)
        manifest, label, folder = self.manifest, self.label, self.folder
        others = bool(manifest.extensions)  # foreign shards; the default label is requested even if they have none
        if label not in manifest.classes and (label != "label" or (manifest.classes and not others)):
            known = ", ".join(manifest.classes) or "none"
            cure = f" If its samples have one, run `wcord index` with --label {label}." if others else ""
            raise UserError(f"{folder}: data.label: no label `{label}` in this dataset; it has: {known}.{cure}")
        if self.dense and f"{label}.png" not in manifest.fields:
            raise UserError(
                f"{folder}: data.label: the mask `{label}` requires the member {label}.png, but no sample has it."
            )
        values = tuple(manifest.masks.get(label, ()))
        task = Task(label, len(self.classes), values, visible_labels, seed, manifest.foreign_label(label))
        shards = tuple(manifest.splits[split])
        layout = manifest.layout(self.place, split)
        held = frozenset(chain(manifest.fields, *(other.fields for _, other in self.others)))
        source = Source(layout, shards, task, self.policy, None, self._joined, stages=self.stages, held=held)
        if not source.tolerant:
            verify_files(source.folder, shards)
        return source


def open_dataset(
    folder: str | Path,
    label: str = "label",
    policy: Policy = Policy(),
    join: Sequence[str] = (),
    load: Load = load_dataset,
) -> OpenDataset:
    """Open a dataset and those joined to it.

    Args:
        folder: Folder, URL or pattern of shards.
        label: The label that is the task.
        policy: What to do with samples that cannot be used.
        join: Folders, URLs or patterns of datasets whose members are joined by key.
        load: Loads a manifest.

    Raises:
        UserError: A dataset cannot be found or read.
    """
    tolerant = policy.max_faulty > 0
    others = tuple((other, load(other, "label", tolerant)) for other in join)
    manifest = load(folder, label, tolerant)
    return OpenDataset(folder, local(folder), manifest, label, policy, others=others)


def open_split(
    folder: str | Path,
    split: str,
    label: str,
    visible_labels: float = 1.0,
    seed: int = 0,
    policy: Policy = Policy(),
    join: Sequence[str] = (),
) -> Source:
    """Open a split of a dataset. Checks that its shards exist with the expected sizes, but does not read them.

    All samples of a dataset without classes are unlabelled.

    Args:
        folder: Folder, URL or pattern of shards.
        split: The split.
        label: The label that is the task.
        visible_labels: Fraction of the samples whose label is used, in (0, 1].
        seed: Random seed of the choice of these samples.
        policy: What to do with samples that cannot be used.
        join: Folders, URLs or patterns of datasets whose members are joined by key.

    Raises:
        UserError: See `open_dataset` and `OpenDataset.split`.
    """
    return open_dataset(folder, label, policy, join).split(split, visible_labels, seed)
