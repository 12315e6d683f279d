"""The stages from shards to raw samples, as a `webdataset.DataPipeline`: slices, read, shuffle."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from functools import partial

from webdataset import DataPipeline

from pipeline.data.order import Pass
from pipeline.data.shard_reader import Sample, Slice, slices
from pipeline.data.source import Source


def raw_samples(source: Source, own: Pass, members: frozenset[str], epoch: int, size: int) -> DataPipeline:
    """The raw samples of a pass, shuffled.

    Args:
        source: The split.
        own: The pass.
        members: The members to read, as bytes.
        epoch: The epoch that selects the cached teacher features.
        size: Size of the shuffle buffer in samples; 0 keeps the order of the shards.
    """
    return DataPipeline(
        partial(slices, own.shards, own.start, own.stop),
        partial(read, source, members, epoch),
        partial(shuffle, size, random.Random(own.seed)),
    )


def read(source: Source, members: frozenset[str], epoch: int, parts: Iterable[Slice]) -> Iterator[Sample]:
    """Read the raw samples of slices.

    Args:
        source: The split.
        members: The members to read, as bytes.
        epoch: The epoch that selects the cached teacher features.
        parts: The slices.

    Yields:
        Raw samples, in the order of the slices.
    """
    for shard, first, last in parts:
        yield from source.read_shard(shard, members, first, last, epoch)


def shuffle(size: int, rng: random.Random, samples: Iterable[Sample]) -> Iterator[Sample]:
    """Shuffle a stream through a buffer.

    Not `webdataset.shuffle`, which emits samples before its buffer is full and thus shuffles the first ones less well.

    Args:
        size: Size of the buffer in samples; 0 or 1 keeps the order.
        rng: Random generator.
        samples: The stream.

    Yields:
        The same samples in random order.
    """
    buffer: list[Sample] = []
    for sample in samples:
        if len(buffer) < size:
            buffer.append(sample)
            continue
        if size == 0:
            yield sample
            continue
        index = rng.randrange(size)
        buffer[index], sample = sample, buffer[index]
        yield sample
    rng.shuffle(buffer)
    yield from buffer
