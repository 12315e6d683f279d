"""The paired stream: from shards to batches in which every network is given its view of the same samples.

The order of samples is a pure function of (seed, epoch, rank, worker). An epoch shuffles the shards, concatenates their
samples and assigns one contiguous range of batches to each reader (a worker of a rank). Therefore every rank takes the
same number of steps, each sample is read by exactly one reader, there may be fewer shards than readers, and a stream
can start at any batch. An unusable sample is replaced by one from a neighbouring batch, which is then used twice.

A little over 350 lines, since it contains the training stream, the evaluation stream, and the loader for both.
"""

from __future__ import annotations

import atexit
import random
import signal
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import cycle, islice
from multiprocessing import active_children
from typing import Any

import cv2
import torch
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pipeline.common.console import log_from_worker, log_level
from pipeline.common.disk_errors import machine_fault
from pipeline.common.errors import UserError
from pipeline.common.host import yield_to_training
from pipeline.data import reading
from pipeline.data.augmentation import WHOLE, Augmentation
from pipeline.data.message import with_arrays, with_tensors
from pipeline.data.order import Pass
from pipeline.data.prepare import Prepare
from pipeline.data.shard_reader import Sample
from pipeline.data.skipped import SampleError, Skipped, counts, in_words
from pipeline.data.source import Source
from pipeline.data.stages import raw_samples
from pipeline.data.views import Batch, ViewSpec


@dataclass(frozen=True)
class Fault:
    """An error sent from a loader worker to the main process, which raises it.

    Attributes:
        message: The error message.
    """

    message: str


@dataclass(frozen=True)
class Rest:
    """Samples that a loader worker skipped after its last batch, sent to the main process.

    Attributes:
        skipped: The samples.
    """

    skipped: list[Skipped]


class TrainStream(IterableDataset[Any]):
    """Endless training batches for one rank.

    Iteration yields batches, or a `Fault` as the last item.

    Args:
        source: The split.
        views: Role -> views of the network.
        augmentation: Augmentation. Its seed also determines the order of the samples.
        batch: Samples per rank and step.
        ranks: Number of processes that share the split.
        rank: Rank of this process.
        shuffle: Size of the shuffle buffer in samples; 0 keeps the order of the shards.
        start: Index of the first batch, counted from the beginning of the run.
        deprecated: `seed`, `crop`, `flip` and `pad`; use `augmentation`. Accepted until 0.4.

    Raises:
        UserError: The split has fewer samples than one global batch.
    """

    def __init__(
        self,
        source: Source,
        views: Mapping[str, ViewSpec],
        augmentation: Augmentation = WHOLE,
        *,
        batch: int,
        ranks: int = 1,
        rank: int = 0,
        shuffle: int = 2000,
        start: int = 0,
        **deprecated: Any,
    ) -> None:
        super().__init__()
        if deprecated:
            names = ", ".join(deprecated)
            warnings.warn(f"TrainStream({names}): use augmentation=Augmentation({names})", FutureWarning, stacklevel=2)
            augmentation = replace(augmentation, **deprecated)
        self.source, self.batch, self.ranks, self.rank = source, batch, ranks, rank
        self.seed, self.shuffle, self.start = augmentation.seed, shuffle, start
        self.steps_per_epoch = steps_per_epoch(source, batch * ranks)
        self.prepare = Prepare(source, views, augmentation)

    def __iter__(self) -> Iterator[Batch | Fault]:
        worker, workers = worker_place()
        # The loader polls its workers round-robin from worker 0, so worker 0 yields batch `start` of a resumed stream.
        reader = (self.start + worker) % workers
        epoch = self.start // self.steps_per_epoch
        while True:
            first = self.start if epoch == self.start // self.steps_per_epoch else epoch * self.steps_per_epoch
            try:
                yield from self._epoch(epoch, first, reader, workers)
            except (UserError, OSError) as error:
                yield _fault(error, self.source)
                return
            epoch += 1

    def _epoch(self, epoch: int, first: int, reader: int, workers: int) -> Iterator[Batch]:
        begin, end = epoch * self.steps_per_epoch, (epoch + 1) * self.steps_per_epoch
        counts = [len(range(begin + (w - begin) % workers, end, workers)) for w in range(workers)]
        before = self.rank * self.steps_per_epoch + sum(counts[:reader])
        start, stop = before * self.batch, (before + counts[reader]) * self.batch
        done = len(range(begin + (reader - begin) % workers, first, workers))

        shards = list(self.source.shards)
        random.Random(f"{self.seed}/{epoch}").shuffle(shards)
        own = Pass(tuple(shards), start, stop, f"{self.seed}/{epoch}/{self.rank}/{reader}")
        samples = iter(raw_samples(self.source, own, self.prepare.members, epoch, self.shuffle))
        previous: list[Drawn] = []
        raws = self._drawn(samples, epoch)
        while raws:
            after = self._drawn(samples, epoch)
            if done == 0:
                yield assemble(raws, previous or after)
            done = max(done - 1, 0)
            previous, raws = raws, after

    def _drawn(self, samples: Iterator[Sample], epoch: int) -> list[Drawn]:
        return [Drawn(self.prepare, raw, epoch) for raw in islice(samples, self.batch)]


@dataclass(frozen=True)
class Drawn:
    """A raw sample that was drawn for a batch.

    Attributes:
        prepare: Decodes and augments it.
        raw: The raw sample.
        epoch: The epoch of its augmentation.
    """

    prepare: Prepare
    raw: Sample
    epoch: int


def assemble(raws: Sequence[Drawn], spare: Sequence[Drawn]) -> Batch:
    """Build a batch. Unusable samples are replaced by spare samples, or else by other samples of the batch.

    Args:
        raws: The samples of the batch.
        spare: Replacements.

    Returns:
        The batch; `skipped` lists the samples that could not be used.

    Raises:
        UserError: No sample can be used, or the policy does not allow skipping one.
    """
    skipped: list[Skipped] = []
    spares = _usable(spare, skipped)
    samples = [next(_usable([drawn], skipped), None) or next(spares, None) for drawn in raws]
    usable = cycle([sample for sample in samples if sample is not None] or [None])
    filled = [sample or next(usable) for sample in samples]
    prepare = raws[0].prepare
    if None in filled:
        raise UserError(
            f"{prepare.source.folder}: none of {len(raws) + len(spare)} consecutive samples can be used "
            f"({in_words(counts(skipped))}). The first: {skipped[0].message}"
        )
    return prepare.collate([sample for sample in filled if sample]) | {"skipped": skipped}


def _usable(raws: Iterable[Drawn], skipped: list[Skipped]) -> Iterator[Sample]:
    for drawn in raws:
        if (sample := ready(drawn.prepare, drawn.raw, drawn.epoch, skipped)) is not None:
            yield sample


def steps_per_epoch(source: Source, batch: int) -> int:
    """Number of steps per epoch.

    Args:
        source: The split.
        batch: Samples of a global batch.

    Raises:
        UserError: The split has fewer samples than one global batch.
    """
    if source.samples < batch:
        raise UserError(
            f"{source.folder}: the split has {source.samples} samples, fewer than the global batch of {batch}; lower "
            "data.batch_size."
        )
    return source.samples // batch


def ready(prepare: Prepare, raw: Sample, epoch: int, skipped: list[Skipped]) -> Sample | None:
    """Decode and augment a raw sample.

    Args:
        prepare: Decodes and augments.
        raw: The raw sample.
        epoch: The epoch of the augmentation.
        skipped: A sample that the policy skips is appended here.

    Returns:
        The sample; None if it was skipped.

    Raises:
        SampleError: The sample cannot be used, and the policy does not allow skipping it.
    """
    try:
        return prepare(raw, epoch)
    except SampleError as error:
        source = prepare.source
        if not error.skipped.allowed(source.tolerant, source.policy.unpaired != "error"):
            raise
        skipped.append(error.skipped)
        return None


class EvalStream(IterableDataset[Any]):
    """Every usable sample of a split once, without augmentation. The order depends on the number of readers.

    Iteration yields batches, then a `Rest` if samples were skipped after the last batch, or a `Fault`.

    Args:
        source: The split.
        views: Role -> views of the network.
        batch: Samples per rank and step.
        ranks: Number of processes that share the split.
        rank: Rank of this process.
        most: Maximum number of samples; None for all.
    """

    def __init__(
        self,
        source: Source,
        views: Mapping[str, ViewSpec],
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
        worker, workers = worker_place()
        reader, readers = self.rank * workers + worker, self.ranks * workers
        total = min(self.source.samples, self.most or self.source.samples)
        start, stop = total * reader // readers, total * (reader + 1) // readers
        skipped, batch = list[Skipped](), list[Sample]()
        try:
            for raw in self.source.read(self.prepare.members, start, stop):
                if (sample := ready(self.prepare, raw, 0, skipped)) is not None:
                    batch.append(sample)
                if len(batch) == self.batch:
                    yield self.prepare.collate(batch) | {"skipped": skipped}
                    batch, skipped = [], []
            if batch:
                yield self.prepare.collate(batch) | {"skipped": skipped}
            elif skipped:
                yield Rest(skipped)
        except (UserError, OSError) as error:
            yield _fault(error, self.source)


def _fault(error: UserError | OSError, source: Source) -> Fault:
    """What to send to the main process. An OSError of a modality is one of the machine, or else a bug and raised."""
    fault = error if isinstance(error, UserError) else machine_fault(error, source.folder)
    if fault is None:
        raise error
    return Fault(str(fault))


def loader(
    stream: IterableDataset[Any],
    workers: int,
    device: torch.device,
    rest: list[Skipped] | None = None,
    timeout: float = 0,
) -> Iterator[Batch]:
    """Load the batches of a stream.

    Args:
        stream: The stream.
        workers: Number of loader processes; 0 loads in this process.
        device: Device of the tensors.
        rest: Samples that were skipped after the last batch are appended here.
        timeout: Seconds to wait for a batch from the loader processes before failing; 0 means no limit.

    Yields:
        Batches on the device.

    Raises:
        UserError: A worker reported an error, died, or delivered no batch in time.
    """
    files = reading.slots(workers)
    # On a machine with one core, two workers are no mistake: they are the default, and hide the latency of the disk.
    warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
    batches: DataLoader[Any] = DataLoader(
        stream,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        collate_fn=with_arrays,
        worker_init_fn=partial(_start_worker, log_level(), files),
        timeout=timeout if workers else 0,
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
            yield send_to_device(with_tensors(batch), device, non_blocking=True, skip_keys=["key", "skipped"])
    except (RuntimeError, ConnectionError, EOFError) as error:  # the last two while a batch is transferred
        if "DataLoader timed out" in str(error):
            raise UserError(
                f"the loader processes delivered no batch within {timeout:g} s (train.timeout). They are reading "
                f"{reading.in_words(files)}. Check this disk or the network, or raise train.timeout; then run with "
                "--resume."
            ) from None
        if (died := worker_died(error)) is None and isinstance(error, RuntimeError):
            raise
        raise died or _died(type(error).__name__) from None


def worker_died(error: Exception) -> UserError | None:
    """Convert torch's error about a dead loader process; None for other errors.

    Torch raises it from a signal handler, so it can appear anywhere in the main thread.
    """
    return _died(str(error).splitlines()[0]) if "DataLoader worker" in str(error) else None


def _died(reason: str) -> UserError:
    return UserError(
        f"a loader process died: {reason} It may have run out of memory. Lower data.workers, data.shuffle or "
        "data.batch_size."
    )


@cache
def _kill_workers_at_exit() -> None:
    """Without this, Python would send SIGTERM to the workers, which ignore it, and wait forever."""
    atexit.register(_kill_workers)


def _kill_workers() -> None:
    for child in active_children():
        if child.daemon:
            child.kill()


def _start_worker(level: int, files: Sequence[Any], worker: int) -> None:
    log_from_worker(level)
    reading.begin(files[worker])
    cv2.setNumThreads(0)
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # sent to the whole process group; the main process needs its workers to finish the step
        signal.signal(number, signal.SIG_IGN)
    yield_to_training()


def worker_place() -> tuple[int, int]:
    """Index of this loader worker, and the number of workers; (0, 1) in the main process."""
    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)
