"""The order of samples: pure functions of seed, step, rank and worker, so a run can resume at any step.

A reader is a worker of a rank. It reads a source in a sequence of passes, each shuffled separately. `ResampledShards`
and `RandomMix` of the webdataset library are not used, since the state of their random generator cannot be saved.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from pipeline.common.hashing import digest
from pipeline.data.dataset import Shard

GOLDEN = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio. Its multiples modulo 2^64 are more evenly spread than random numbers."""

CHUNK = 1 << 20
"""Maximum number of samples whose sources are computed at a time."""


@dataclass(frozen=True)
class Pass:
    """A range of the concatenated samples of shards, which a reader shuffles.

    Attributes:
        shards: The shards, in order.
        start: Index of the first sample.
        stop: Index of the last sample plus 1.
        seed: Random seed of the shuffle buffer.
    """

    shards: tuple[Shard, ...]
    start: int
    stop: int
    seed: str

    @property
    def samples(self) -> int:
        """Number of samples."""
        return self.stop - self.start


Passes = Callable[[int, int], Iterator[Pass]]
"""A function from the index of a reader and the number of readers to the endless passes of this reader."""


def once(shards: Sequence[Shard], seed: str) -> Passes:
    """Passes in which all readers together read every sample once, in a new order each time.

    If there are fewer samples than readers, each reader reads all samples.

    Args:
        shards: The shards.
        seed: Random seed.
    """
    total = sum(shard.samples for shard in shards)

    def passes(reader: int, readers: int) -> Iterator[Pass]:
        start, stop = total * reader // readers, total * (reader + 1) // readers
        if total < readers:
            start, stop = 0, total
        for number in count():
            order = list(shards)
            random.Random(f"{seed}/{number}").shuffle(order)
            yield Pass(tuple(order), start, stop, f"{seed}/{number}/{reader}")

    return passes


def with_replacement(shards: Sequence[Shard], seed: str, least: int) -> Passes:
    """Passes over whole shards, drawn uniformly with replacement. Therefore all samples are equally likely.

    Args:
        shards: The shards.
        seed: Random seed.
        least: Minimum number of samples of a pass, which are shuffled together.
    """

    def passes(reader: int, readers: int) -> Iterator[Pass]:
        for number in count():
            own = f"{seed}/{number}/{reader} of {readers}"
            rng, drawn, total = random.Random(own), list[Shard](), 0
            while total < max(least, 1):
                drawn.append(shards[rng.randrange(len(shards))])
                total += drawn[-1].samples
            yield Pass(tuple(drawn), 0, total, own)

    return passes


def passes_from(passes: Iterator[Pass], taken: int) -> Iterator[tuple[int, Pass, int]]:
    """Skip samples at the start of a sequence of passes.

    Args:
        passes: The passes.
        taken: Number of samples to skip.

    Yields:
        Index of a pass, the pass, and the number of its samples to skip.
    """
    for number, own in enumerate(passes):
        if taken < own.samples:
            yield number, own, taken
        taken = max(taken - own.samples, 0)


@dataclass(frozen=True)
class Shares:
    """Assigns each sample of a run to a source, in proportion to the weights.

    The interval [0, 1) is divided among the sources. Sample n comes from the source whose interval contains the n-th
    multiple of the golden ratio modulo 1, so the shares are accurate in every part of a run.

    Attributes:
        weights: Weights of the sources; they need not add up to 1.
        seed: Determines the start of the sequence.
        batch: Samples per rank and step.
        ranks: Number of ranks.
    """

    weights: tuple[float, ...]
    seed: int
    batch: int
    ranks: int

    def of_batch(self, step: int, rank: int) -> np.ndarray:
        """The source of each sample of a batch.

        Args:
            step: Index of the step in the run.
            rank: The rank.

        Returns:
            Indices of the sources, int64 `[batch]`.
        """
        return self._sources(np.array([step]), rank)

    def taken(self, steps: range, rank: int) -> np.ndarray:
        """Count the samples of each source in the batches of these steps.

        Args:
            steps: Indices of steps in the run.
            rank: The rank.

        Returns:
            Counts, int64 `[sources]`.
        """
        total = np.zeros(len(self.weights), np.int64)
        width = max(CHUNK // self.batch, 1)
        for begin in range(0, len(steps), width):
            found = self._sources(np.array(steps[begin : begin + width]), rank)
            total += np.bincount(found, minlength=len(self.weights))
        return total

    def _sources(self, steps: np.ndarray, rank: int) -> np.ndarray:
        first = (steps.astype(np.uint64) * np.uint64(self.ranks) + np.uint64(rank)) * np.uint64(self.batch)
        number = (first[:, None] + np.arange(self.batch, dtype=np.uint64)).ravel()
        place = number * np.uint64(GOLDEN) + np.uint64(digest(f"mixture/{self.seed}"))  # modulo 2^64
        ends = np.cumsum(self.weights)
        return np.searchsorted(ends[:-1] / ends[-1], place / 2.0**64, side="right")
