"""Mixtures: several sources in one stream with fixed shares; or one source, sampled with replacement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from pipeline.common.errors import UserError
from pipeline.data.augmentation import WHOLE, Augmentation
from pipeline.data.manifest import Load, load_dataset
from pipeline.data.order import Shares, once, passes_from, with_replacement
from pipeline.data.prepare import Prepare
from pipeline.data.settings import Settings, SourceSettings
from pipeline.data.shard_reader import Sample
from pipeline.data.source import OpenDataset, Source
from pipeline.data.stages import raw_samples
from pipeline.data.stream import Drawn, Fault, assemble, worker_place
from pipeline.data.views import Batch, ViewSpec


@dataclass(frozen=True)
class Mixture:
    """Sources that are sampled together.

    Attributes:
        sources: The training splits.
        weights: Weights of the sources; they need not add up to 1.
        replacement: Whether to draw shards with replacement. If not, all samples of a source come before any repeats.
        epoch_samples: Samples per epoch.
        datasets: The datasets of the sources.
    """

    sources: tuple[Source, ...]
    weights: tuple[float, ...]
    replacement: bool
    epoch_samples: int
    datasets: tuple[OpenDataset, ...] = ()

    @property
    def samples(self) -> int:
        """Total number of samples of all sources."""
        return sum(source.samples for source in self.sources)

    def steps_per_epoch(self, batch: int) -> int:
        """Number of steps per epoch.

        Args:
            batch: Number of samples in a global batch.

        Raises:
            UserError: An epoch is smaller than one global batch.
        """
        if self.epoch_samples < batch:
            raise UserError(
                f"data.epoch_samples: an epoch has {self.epoch_samples} samples, fewer than the global batch of "
                f"{batch}. Increase it, or lower data.batch_size."
            )
        return self.epoch_samples // batch


def open_mixture(config: Settings, first: OpenDataset, load: Load = load_dataset) -> Mixture:
    """Open the training splits of the datasets of a config.

    Args:
        config: Config of the run.
        first: Its first dataset, which defines the classes.
        load: Loads a manifest.

    Raises:
        UserError: A dataset has a class that the first one lacks, or only one of them has masks.
    """
    data = config.data
    opened = [first, *(OpenDataset.of_source(config, source, load) for source in data.sources[1:])]
    sources: list[Source] = []
    for settings, dataset in zip(data.sources, opened, strict=True):
        source = dataset.split("train", data.label_fraction, config.seed)
        task = replace(source.task, renumbered=_renumbered(settings, dataset, first))
        sources.append(replace(source, task=task, offset=sum(other.samples for other in sources)))
    total = sum(source.samples for source in sources)
    weights = tuple(settings.weight for settings in data.sources)
    replacement = data.sampling == "with_replacement"
    return Mixture(tuple(sources), weights, replacement, data.epoch_samples or total, tuple(opened))


def _renumbered(settings: SourceSettings, dataset: OpenDataset, first: OpenDataset) -> tuple[int, ...]:
    """Class of a dataset -> class of the first dataset, matched by name."""
    if dataset.dense != first.dense:
        raise UserError(
            f"data.shards: {settings.path} and {first.folder}: the label of one is a mask, that of the other is not. "
            "Choose labels of the same kind."
        )
    names = [settings.names.get(name, name) for name in dataset.classes]
    if first.dense and names != list(first.classes):
        raise UserError(
            f"data.shards: {settings.path}: its mask classes, or their order, differ from those of {first.folder}. "
            "Pack it with the same classes in the same order."
        )
    numbers = {name: number for number, name in enumerate(first.classes)}
    if strange := sorted(set(names) - set(numbers)):
        raise UserError(
            f"data.shards: {settings.path}: the class `{strange[0]}` is not a class of {first.folder}. Map it to one "
            "with `names`, or choose another label."
        )
    return tuple(numbers[name] for name in names)


class SourceCounts:
    """Counts the samples of each source that a run has drawn.

    Args:
        mixture: The mixture.
        seed: Random seed of the run.
        batch: Samples per rank and step.
        ranks: Number of processes.
    """

    def __init__(self, mixture: Mixture, seed: int, batch: int, ranks: int) -> None:
        self.shares, self.ranks = Shares(mixture.weights, seed, batch, ranks), ranks
        names = [dataset.manifest.name for dataset in mixture.datasets]
        self.names = [f"{number} {name}" if names.count(name) > 1 else name for number, name in enumerate(names)]
        self.step, self.drawn = 0, np.zeros(len(names), np.int64)

    def upto(self, step: int) -> dict[str, int]:
        """Count the samples of all steps before this one.

        Args:
            step: The step. It must not decrease between calls.

        Returns:
            Name of each source -> number of its samples.
        """
        self.drawn += sum(self.shares.taken(range(self.step, step), rank) for rank in range(self.ranks))
        self.step = step
        return dict(zip(self.names, self.drawn.tolist(), strict=True))


class MixedStream(IterableDataset[Any]):
    """Endless training batches of a mixture for one rank.

    The order is a pure function of (seed, step, rank, worker), so the stream can start at any batch. Iteration yields
    batches, or a `Fault` as the last item.

    Args:
        mixture: The mixture.
        views: Role -> views of the network.
        augmentation: Augmentation. Its seed also determines the order of the samples.
        batch: Samples per rank and step.
        ranks: Number of processes that share the sources.
        rank: Rank of this process.
        shuffle: Size of the shuffle buffer of each source in samples; 0 keeps the order of the shards.
        start: Index of the first batch, counted from the beginning of the run.

    Raises:
        UserError: An epoch is smaller than one global batch.
    """

    def __init__(
        self,
        mixture: Mixture,
        views: Mapping[str, ViewSpec],
        augmentation: Augmentation = WHOLE,
        *,
        batch: int,
        ranks: int = 1,
        rank: int = 0,
        shuffle: int = 2000,
        start: int = 0,
    ) -> None:
        super().__init__()
        self.mixture, self.batch, self.ranks, self.rank = mixture, batch, ranks, rank
        self.seed, self.shuffle, self.start = augmentation.seed, shuffle, start
        self.steps_per_epoch = mixture.steps_per_epoch(batch * ranks)
        self.shares = Shares(mixture.weights, self.seed, batch, ranks)
        self.prepares = [Prepare(source, views, augmentation) for source in mixture.sources]

    def __iter__(self) -> Iterator[Batch | Fault]:
        worker, workers = worker_place()
        # The loader polls its workers round-robin from worker 0, so worker 0 yields batch `start` of a resumed stream.
        own, first = (self.start + worker) % workers, self.start + worker
        before = max(first - workers, own)  # one batch earlier; its samples replace unusable ones
        taken = self.shares.taken(range(own, before, workers), self.rank)
        reader, readers = self.rank * workers + own, self.ranks * workers
        sources = [self._samples(number, int(n), reader, readers) for number, n in enumerate(taken)]
        spare: list[Drawn] = []
        try:
            for step in count(before, workers):
                chosen = self.shares.of_batch(step, self.rank)
                raws = [Drawn(self.prepares[number], next(sources[number]), step) for number in chosen]
                if step >= first:
                    yield assemble(raws, spare)
                spare = raws
        except UserError as error:
            yield Fault(str(error))

    def _samples(self, number: int, taken: int, reader: int, readers: int) -> Iterator[Sample]:
        """The endless samples that a reader draws from one source, without the first `taken` ones."""
        prepare, seed = self.prepares[number], f"{self.seed}/source {number}"
        shards = prepare.source.shards
        passes = with_replacement(shards, seed, self.shuffle) if self.mixture.replacement else once(shards, seed)
        for visit, own, done in passes_from(passes(reader, readers), taken):
            yield from islice(raw_samples(prepare.source, own, prepare.members, visit, self.shuffle), done, None)
