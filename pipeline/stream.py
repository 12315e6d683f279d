"""The paired stream: shards to batches, in which every network gets its view of the same samples.

The order of a run is a pure function of (seed, epoch, rank, worker): an epoch shuffles the shards and cuts their
samples, end to end, into one contiguous run of batches per reader (a worker of a rank). So every rank takes the same
number of steps, every sample is read by one reader, fewer shards than readers still work, and a stream can start at
any batch. A sample that cannot be used keeps its place: another one, of a neighbouring batch, is seen a second time.
"""

from __future__ import annotations

import atexit
import random
import signal
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import cycle, islice
from multiprocessing import active_children
from typing import Any

import cv2
import torch
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pipeline.draw import Draw
from pipeline.errors import UserError
from pipeline.host import yield_to_training
from pipeline.prepare import Batch, Prepare, Sight
from pipeline.samples import Sample, read_range, shuffled
from pipeline.skipped import SampleError, Skipped, counts, in_words
from pipeline.source import Source


@dataclass(frozen=True)
class Fault:
    """An error on its way from a loader worker to the process that can tell the user."""

    message: str


@dataclass(frozen=True)
class Rest:
    """What a loader worker passed over after its last batch, on its way to the process that counts."""

    skipped: list[Skipped]


class TrainStream(IterableDataset[Any]):
    """Endless batches for one rank, from batch `start` on (counted from the beginning of the run).

    views: role -> what a network sees. batch: samples a rank and step. shuffle: samples that are mixed, in memory.
    crop, flip, pad: see `Draw`. Raises UserError if the split has fewer samples than one global batch.
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
        pad: tuple[int, int] | None = None,
        start: int = 0,
    ) -> None:
        super().__init__()
        self.source, self.batch, self.ranks, self.rank, self.seed = source, batch, ranks, rank, seed
        self.shuffle, self.start = shuffle, start
        self.steps_per_epoch = steps_per_epoch(source, batch * ranks)
        self.prepare = Prepare(source, views, Draw(seed, crop, flip, pad))

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
        done = len(range(begin + (reader - begin) % workers, first, workers))

        shards = list(self.source.shards)
        order = random.Random(f"{self.seed}/{epoch}")
        order.shuffle(shards)
        source = self.source
        samples = read_range(
            source.folder, shards, start, stop, self.prepare.members, source.tolerant, source.beside(epoch)
        )
        samples = shuffled(samples, self.shuffle, random.Random(f"{self.seed}/{epoch}/{self.rank}/{reader}"))
        previous: list[Sample] = []
        raws = list(islice(samples, self.batch))
        while raws:
            after = list(islice(samples, self.batch))
            if done == 0:
                yield self._batch(raws, previous or after, epoch)
            done = max(done - 1, 0)
            previous, raws = raws, after

    def _batch(self, raws: list[Sample], spare: list[Sample], epoch: int) -> Batch:
        """A batch of raw samples; where one cannot be used, of `spare` ones, and only then of others of its own."""
        skipped: list[Skipped] = []
        spares = self._usable(spare, epoch, skipped)
        samples = [next(self._usable([raw], epoch, skipped), None) or next(spares, None) for raw in raws]
        usable = cycle([sample for sample in samples if sample is not None] or [None])
        filled = [sample or next(usable) for sample in samples]
        if None in filled:
            raise UserError(
                f"{self.source.folder}: none of {len(raws) + len(spare)} samples in a row can be used "
                f"({in_words(counts(skipped))}); the first: {skipped[0].message}"
            )
        return self.prepare.collate([sample for sample in filled if sample]) | {"skipped": skipped}

    def _usable(self, raws: Iterable[Sample], epoch: int, skipped: list[Skipped]) -> Iterator[Sample]:
        for raw in raws:
            if (sample := ready(self.prepare, raw, epoch, skipped)) is not None:
                yield sample


def steps_per_epoch(source: Source, batch: int) -> int:
    """Global batches of that size in a split; UserError if it has fewer samples than one."""
    if source.samples < batch:
        raise UserError(
            f"{source.folder}: the split has {source.samples} samples, fewer than the global batch of {batch}; lower "
            "data.batch_size."
        )
    return source.samples // batch


def ready(prepare: Prepare, raw: Sample, epoch: int, skipped: list[Skipped]) -> Sample | None:
    """A raw sample made ready; None, with the reason in `skipped`, for one that the policy skips."""
    try:
        return prepare(raw, epoch)
    except SampleError as error:
        source, reason = prepare.source, error.skipped
        if not (source.policy.unpaired != "error" if reason.unpaired else source.tolerant):
            raise
        skipped.append(reason)
        return None


class EvalStream(IterableDataset[Any]):
    """Every usable sample of a split once, not augmented, in an order that depends on the number of readers.

    views: role -> what a network sees. batch: samples a rank and step. most: only the first so many; None: all.
    """

    def __init__(
        self,
        source: Source,
        views: Mapping[str, Sight],
        *,
        batch: int,
        ranks: int = 1,
        rank: int = 0,
        most: int | None = None,
    ) -> None:
        super().__init__()
        self.source, self.batch, self.ranks, self.rank, self.most = source, batch, ranks, rank, most
        self.prepare = Prepare(source, views, None)

    def __iter__(self) -> Iterator[Batch | Rest | Fault]:
        worker, workers = _worker()
        reader, readers = self.rank * workers + worker, self.ranks * workers
        total = min(self.source.samples, self.most or self.source.samples)
        start, stop = total * reader // readers, total * (reader + 1) // readers
        source, skipped, batch = self.source, list[Skipped](), list[Sample]()
        try:
            raws = read_range(source.folder, source.shards, start, stop, self.prepare.members, source.tolerant)
            for raw in raws:
                if (sample := ready(self.prepare, raw, 0, skipped)) is not None:
                    batch.append(sample)
                if len(batch) == self.batch:
                    yield self.prepare.collate(batch) | {"skipped": skipped}
                    batch, skipped = [], []
            if batch:
                yield self.prepare.collate(batch) | {"skipped": skipped}
            elif skipped:
                yield Rest(skipped)
        except UserError as error:
            yield Fault(str(error))


def loader(
    stream: IterableDataset[Any], workers: int, device: torch.device, rest: list[Skipped] | None = None
) -> Iterator[Batch]:
    """Batches of a stream through `workers` processes (0: in this one), on `device`.

    rest: takes the samples that were passed over and that no batch tells of, for none came after them.
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
    _kill_workers_at_exit()
    try:
        for batch in batches:
            if isinstance(batch, Fault):
                raise UserError(batch.message)
            if isinstance(batch, Rest):
                if rest is not None:
                    rest += batch.skipped
                continue
            yield send_to_device(batch, device, non_blocking=True)
    except (RuntimeError, ConnectionError, EOFError) as error:  # the last two while a batch is handed over
        if (died := worker_died(error)) is None and isinstance(error, RuntimeError):
            raise
        raise died or _died(type(error).__name__) from None


def worker_died(error: Exception) -> UserError | None:
    """What to say if an error tells of a dead loader process; torch raises it wherever the main thread is just then."""
    return _died(str(error).splitlines()[0]) if "DataLoader worker" in str(error) else None


def _died(reason: str) -> UserError:
    return UserError(
        f"a loader process died: {reason} It may have run out of memory: lower data.workers, data.shuffle or "
        "data.batch_size."
    )


@cache
def _kill_workers_at_exit() -> None:
    """Python would ask them by SIGTERM, which they ignore, and wait for ever."""
    atexit.register(_kill_workers)


def _kill_workers() -> None:
    for child in active_children():
        if child.daemon:
            child.kill()


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # they come to all processes; the main one has to end its step
        signal.signal(number, signal.SIG_IGN)
    yield_to_training()


def _worker() -> tuple[int, int]:
    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)
