"""The paired stream: shards to batches, in which every network gets its view of the same samples.

The order of a run is a pure function of (seed, epoch, rank, worker): an epoch shuffles the shards and cuts their
samples, end to end, into one contiguous run of batches per reader (a worker of a rank). So every rank takes the same
number of steps, every sample is read by one reader, fewer shards than readers still work, and a stream can start at
any batch.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from modalities.base import Geometry, Modality
from pipeline.errors import UserError
from pipeline.host import yield_to_training
from pipeline.samples import Sample, read_range, shuffled
from pipeline.shards import Dataset, Shard, load_dataset, verify_files

Batch = dict[str, Any]


@dataclass(frozen=True)
class View:
    """What one network sees of a sample: a modality at the input size of its encoder."""

    modality: Modality
    size: int


Sight = View | tuple[View, ...]
"""What a network sees: one view, or several that it joins."""


@dataclass(frozen=True)
class Source:
    """A split of a packed data set, and which label of it is the task.

    visible_labels: fraction of the samples, drawn by key and seed, whose label is handed out; the others get -1.
    """

    folder: Path
    shards: tuple[Shard, ...]
    label: str
    classes: int
    visible_labels: float = 1.0
    seed: int = 0

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    def first(self) -> dict[str, int]:
        """Path of a shard -> how many samples lie before it, in the order of dataset.json."""
        ends = accumulate(shard.samples for shard in self.shards)
        return {
            str(self.folder / shard.file): end - shard.samples for shard, end in zip(self.shards, ends, strict=True)
        }


@dataclass(frozen=True)
class Fault:
    """An error on its way from a loader worker to the process that can tell the user."""

    message: str


def open_split(folder: str | Path, split: str, label: str, visible_labels: float = 1.0, seed: int = 0) -> Source:
    """Check that a split of a packed data set is there and whole, without reading it.

    A data set without any classes has 0 of them, and all its samples are unlabelled. Raises UserError for a data set
    that is not packed, a split without samples, a label that it does not have, a missing shard, one of
    the wrong size.
    """
    dataset: Dataset = load_dataset(folder)
    if dataset.samples(split) == 0:
        known = ", ".join(f"{name} ({dataset.samples(name)} samples)" for name in dataset.splits) or "none"
        raise UserError(f"{folder}: split `{split}` has no samples; splits of this data set: {known}.")
    if label not in dataset.classes and (dataset.classes or label != "label"):
        known = ", ".join(dataset.classes) or "none"
        raise UserError(f"{folder}: data.label: no label `{label}` in this data set; it has: {known}.")
    shards = tuple(dataset.splits[split])
    verify_files(folder, shards)
    return Source(Path(folder), shards, label, len(dataset.classes.get(label, [])), visible_labels, seed)


class TrainStream(IterableDataset[Any]):
    """Endless batches for one rank, from batch `start` on (counted from the beginning of the run).

    batch: samples a rank and step. Raises UserError if the split has fewer samples than one global batch.
    """

    def __init__(
        self,
        source: Source,
        views: Mapping[str, Sight],
        *,
        batch: int,
        ranks: int = 1,
        rank: int = 0,
        seed: int = 0,
        shuffle: int = 2000,
        crop: tuple[float, float] = (1.0, 1.0),
        flip: bool = False,
        start: int = 0,
    ) -> None:
        super().__init__()
        self.source, self.batch, self.ranks, self.rank, self.seed = source, batch, ranks, rank, seed
        self.shuffle, self.start = shuffle, start
        self.steps_per_epoch = source.samples // (batch * ranks)
        if self.steps_per_epoch == 0:
            raise UserError(
                f"{source.folder}: the split has {source.samples} samples, fewer than the global batch of "
                f"{batch * ranks}; lower data.batch_size."
            )
        self.prepare = Prepare(source, views, Draw(seed, crop, flip))

    def __iter__(self) -> Iterator[Batch | Fault]:
        worker, workers = _worker()
        # The loader asks its workers in turn from worker 0, so on a resumed stream worker 0 takes batch `start`.
        reader = (self.start + worker) % workers
        epoch = self.start // self.steps_per_epoch
        while True:
            first = self.start if epoch == self.start // self.steps_per_epoch else epoch * self.steps_per_epoch
            try:
                yield from self._epoch(epoch, first, reader, workers)
            except UserError as error:
                yield Fault(str(error))
                return
            epoch += 1

    def _epoch(self, epoch: int, first: int, reader: int, workers: int) -> Iterator[Batch]:
        begin, end = epoch * self.steps_per_epoch, (epoch + 1) * self.steps_per_epoch
        counts = [len(range(begin + (w - begin) % workers, end, workers)) for w in range(workers)]
        before = self.rank * self.steps_per_epoch + sum(counts[:reader])
        start, stop = before * self.batch, (before + counts[reader]) * self.batch
        done = len(range(begin + (reader - begin) % workers, first, workers)) * self.batch

        shards = list(self.source.shards)
        order = random.Random(f"{self.seed}/{epoch}")
        order.shuffle(shards)
        samples = read_range(self.source.folder, shards, start, stop, self.prepare.members)
        samples = shuffled(samples, self.shuffle, random.Random(f"{self.seed}/{epoch}/{self.rank}/{reader}"))
        batch: list[Sample] = []
        for index, raw in enumerate(samples):
            if index < done:
                continue
            batch.append(self.prepare(raw, epoch))
            if len(batch) == self.batch:
                yield self.prepare.collate(batch)
                batch = []


class EvalStream(IterableDataset[Any]):
    """Every sample of a split once, without augmentation, in an order that depends on the number of readers."""

    def __init__(
        self, source: Source, views: Mapping[str, Sight], *, batch: int, ranks: int = 1, rank: int = 0
    ) -> None:
        super().__init__()
        self.source, self.batch, self.ranks, self.rank = source, batch, ranks, rank
        self.prepare = Prepare(source, views, None)

    def __iter__(self) -> Iterator[Batch | Fault]:
        worker, workers = _worker()
        reader, readers = self.rank * workers + worker, self.ranks * workers
        total = self.source.samples
        start, stop = total * reader // readers, total * (reader + 1) // readers
        batch: list[Sample] = []
        try:
            for raw in read_range(self.source.folder, self.source.shards, start, stop, self.prepare.members):
                batch.append(self.prepare(raw, 0))
                if len(batch) == self.batch:
                    yield self.prepare.collate(batch)
                    batch = []
            if batch:
                yield self.prepare.collate(batch)
        except UserError as error:
            yield Fault(str(error))


@dataclass(frozen=True)
class Draw:
    """How training samples are varied: the ranges of the shared geometry."""

    seed: int
    crop: tuple[float, float]
    flip: bool


class Prepare:
    """Raw members of one sample to tensors: decode, one geometry for all views, photometrics per modality."""

    def __init__(self, source: Source, views: Mapping[str, Sight], draw: Draw | None) -> None:
        self.source, self.draw, self.first = source, draw, source.first()
        self.views = dict(views)
        everything = [view for sight in self.views.values() for view in _several(sight)]
        self.members = frozenset(
            member for view in everything for member in (*view.modality.members, "meta.json", "label.txt")
        )
        # Views of the same modality share the decoding, and the tensor as well where the size is the same.
        self.modalities: list[Modality] = []
        self.slots = {role: [self._slot(view) for view in _several(sight)] for role, sight in self.views.items()}

    def _slot(self, view: View) -> tuple[int, int]:
        """Which of the modalities it decodes by, and its size."""
        for number, known in enumerate(self.modalities):
            if _same_modality(known, view.modality):
                return number, view.size
        self.modalities.append(view.modality)
        return len(self.modalities) - 1, view.size

    def __call__(self, raw: Sample, epoch: int) -> Sample:
        where = f"{raw['__url__']}: sample {raw['__key__']}"
        meta = _meta(raw, where)
        decoded = [_decode(modality, raw, meta, where) for modality in self.modalities]
        seed = int.from_bytes(blake2b(raw["__key__"].encode(), digest_size=8).digest(), "little")
        geometry = Geometry()
        if self.draw is not None:
            rng = np.random.default_rng([self.draw.seed, epoch, seed])
            geometry = Geometry.draw(rng, self.draw.crop, self.draw.flip)

        index = self.first[raw["__url__"]] + raw["__place__"]  # in the split, however it is shuffled
        sample: Sample = {"key": raw["__key__"], "index": index, **self._task(raw, meta, where)}
        tensors: dict[tuple[int, int], torch.Tensor] = {}
        for number, size in sorted({slot for slots in self.slots.values() for slot in slots}):
            # The same numbers for every view of a modality, whoever else looks on: the same colours at any size.
            modality, draw = self.modalities[number], self.draw
            rng_view = np.random.default_rng([draw.seed, epoch, seed, _digest(modality.name)]) if draw else None
            tensors[number, size] = modality.augment(decoded[number], geometry, size, rng_view)
        for role, slots in self.slots.items():
            seen = tuple(tensors[slot] for slot in slots)
            sample[role] = seen[0] if isinstance(self.views[role], View) else seen
        return sample

    def _task(self, raw: Sample, meta: Mapping[str, Any], where: str) -> Sample:
        source = self.source
        group = meta.get("group")
        digest = -1 if group is None else _digest(str(group)) >> 1
        if source.classes == 0:
            return {"label": -1, "group": digest}
        if source.label == "label":
            text = raw.get("label.txt", b"-1").decode("ascii", "replace").strip()
        else:
            text = str(meta.get("labels", {}).get(source.label, -1))
        label = int(text) if re.fullmatch(r"-?\d+", text) else -2
        if not -1 <= label < source.classes:
            raise UserError(
                f"{where}: label `{text}` is not a class index in 0..{source.classes - 1}; "
                "run `wcord check` on the data set and pack it again."
            )
        if _unit(f"label/{source.seed}/{raw['__key__']}") >= source.visible_labels:
            label = -1
        return {"label": label, "group": digest}

    def collate(self, samples: Sequence[Sample]) -> Batch:
        batch: Batch = {}
        for role, sight in self.views.items():
            own = [s[role] for s in samples]
            if isinstance(sight, View):
                batch[role] = sight.modality.collate(own)
            else:
                batch[role] = tuple(v.modality.collate(x) for v, x in zip(sight, zip(*own, strict=True), strict=True))
        batch["key"] = [s["key"] for s in samples]
        batch["index"] = torch.tensor([s["index"] for s in samples])
        batch["label"] = torch.tensor([s["label"] for s in samples])
        batch["group"] = torch.tensor([s["group"] for s in samples])
        return batch


def pictures(
    source: Source, views: Mapping[str, Sight], keys: Collection[str]
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """What a person would see of the samples of these keys: key, and role -> uint8 RGB `[H, W, 3]`."""
    members = Prepare(source, views, None).members
    for raw in read_range(source.folder, source.shards, 0, source.samples, members):
        if raw["__key__"] in keys:
            where = f"{raw['__url__']}: sample {raw['__key__']}"
            meta = _meta(raw, where)
            seen = {
                role: _side_by_side(
                    [v.modality.picture(_decode(v.modality, raw, meta, where)) for v in _several(sight)]
                )
                for role, sight in views.items()
            }
            yield raw["__key__"], seen


def loader(stream: IterableDataset[Any], workers: int, device: torch.device) -> Iterator[Batch]:
    """Batches of a stream through `workers` processes (0: in this one), on `device`.

    Raises UserError for the faults that the workers found, in this process.
    """
    batches: DataLoader[Any] = DataLoader(
        stream,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_start_worker,
        pin_memory=device.type == "cuda",
    )
    try:
        for batch in batches:
            if isinstance(batch, Fault):
                raise UserError(batch.message)
            yield send_to_device(batch, device, non_blocking=True)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"a loader process died: {str(error).splitlines()[0]} It may have run out of memory: lower "
            "data.workers, data.shuffle or data.batch_size."
        ) from None


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)
    yield_to_training()


def _worker() -> tuple[int, int]:
    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)


def _several(sight: Sight) -> tuple[View, ...]:
    return (sight,) if isinstance(sight, View) else sight


def _side_by_side(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """As high as the first one."""
    height = len(pictures[0])
    widths = [max(round(p.shape[1] * height / len(p)), 1) for p in pictures]
    return np.hstack([cv2.resize(p, (w, height)) for p, w in zip(pictures, widths, strict=True)])


def _same_modality(a: Modality, b: Modality) -> bool:
    return type(a) is type(b) and vars(a) == vars(b)


def _meta(raw: Sample, where: str) -> Mapping[str, Any]:
    try:
        meta = json.loads(raw.get("meta.json", b"{}"))
    except ValueError as error:
        raise UserError(f"{where}: meta.json: not valid JSON ({error}); run `wcord check` on the data set.") from None
    if not isinstance(meta, dict):
        raise UserError(f"{where}: meta.json: expected an object, got {type(meta).__name__}.")
    return meta


def _decode(modality: Modality, raw: Sample, meta: Mapping[str, Any], where: str) -> Any:
    member = next((field for field in modality.members if field in raw), None)
    if member is None:
        wanted = " or ".join(modality.members)
        raise UserError(
            f"{where}: has no {wanted}, which the modality `{modality.name}` reads; it has "
            f"{', '.join(sorted(k for k in raw if not k.startswith('__')))}. Run `wcord check` on the data set."
        )
    try:
        return modality.decode(raw[member], meta)
    except ValueError as error:
        raise UserError(f"{where}: {member}: {error} Run `wcord check` on the data set.") from None


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def _unit(text: str) -> float:
    """A number in [0, 1) that is fixed by a text."""
    return _digest(text) / 2**64
