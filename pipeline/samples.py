"""Raw samples out of shards: their members as bytes, in the order of the shards or shuffled."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.errors import UserError
from pipeline.shards import Shard
from pipeline.tar import read_members

Sample = dict[str, Any]


def read_range(
    folder: Path, shards: Iterable[Shard], start: int, stop: int, members: frozenset[str]
) -> Iterator[Sample]:
    """Raw samples `start` to `stop` of shards laid end to end; only `members` are kept, as bytes.

    Beside them `__key__`, `__url__` (the shard's path) and `__place__` (0 for the shard's first sample).
    Raises UserError for a shard that is missing, damaged, or holds another number of samples than recorded.
    """
    offset = 0
    for shard in shards:
        first, last = max(start - offset, 0), min(stop - offset, shard.samples)
        offset += shard.samples
        if first < last:
            yield from _read_shard(folder, shard, first, last, members)


def _read_shard(folder: Path, shard: Shard, first: int, last: int, members: frozenset[str]) -> Iterator[Sample]:
    path = str(folder / shard.file)
    count = 0
    try:
        with Path(path).open("rb", buffering=1 << 20) as file:
            for count, sample in enumerate(_samples(file, path, members), 1):
                if first < count <= last:
                    yield sample | {"__place__": count - 1}
                if count > last and last < shard.samples:
                    return
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read after sample {count}: {error}. "
            "Run `wcord check` on the data set; delete the shard and pack again to rebuild it."
        ) from None
    if count != shard.samples:
        raise UserError(
            f"{path}: has {count} samples with {', '.join(sorted(members))}, dataset.json says {shard.samples}. "
            "Run `wcord check` on the data set."
        )


def _samples(file: BinaryIO, path: str, members: frozenset[str]) -> Iterator[Sample]:
    """Consecutive members of one key are a sample; the key ends at the first dot, as WebDataset has it."""
    sample: Sample = {}
    for name, data in read_members(file, lambda name: name.partition(".")[2].lower() in members):
        key, _, member = name.partition(".")
        if sample and sample["__key__"] != key:
            yield sample
            sample = {}
        if not sample:
            sample = {"__key__": key, "__url__": path}
        sample[member.lower()] = data
    if sample:
        yield sample


def shuffled(samples: Iterable[Sample], size: int, rng: random.Random) -> Iterator[Sample]:
    """Shuffle a stream through a buffer of `size` samples (0 or 1: not at all)."""
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
