"""Raw samples out of shards: their members as bytes, in the order of the shards or shuffled."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from pipeline.errors import UserError
from pipeline.remote import fetch, origin
from pipeline.shards import MANIFEST, Shard, sha256
from pipeline.tar import read_members

Sample = dict[str, Any]

CURE = "Run `wcord check` on the data set; delete the shard and pack again to rebuild it."


def read_range(
    folder: Path,
    shards: Iterable[Shard],
    start: int,
    stop: int,
    members: frozenset[str],
    tolerant: bool = False,
    beside: Mapping[str, tuple[Shard, str]] = MappingProxyType({}),
) -> Iterator[Sample]:
    """Raw samples `start` to `stop` of shards laid end to end; only `members` are kept, as bytes.

    Beside them `__key__`, `__url__` (the shard's path) and `__place__` (0 for the shard's first sample).
    Raises UserError for a shard that is missing, damaged, changed since packing, or in which members of a sample are
    not together. tolerant: its samples come instead without members, with the reason as `__lost__`; all of them, for
    then nothing tells which of its members belong together. beside: shard -> its side-car and a member of that, which
    comes as `__beside__` with the samples that have it.
    """
    offset = 0
    for shard in shards:
        first, last = max(start - offset, 0), min(stop - offset, shard.samples)
        offset += shard.samples
        if first < last:
            yield from _read_shard(folder, shard, first, last, members, tolerant, beside.get(shard.file))


def _read_shard(
    folder: Path,
    shard: Shard,
    first: int,
    last: int,
    members: frozenset[str],
    tolerant: bool,
    beside: tuple[Shard, str] | None,
) -> Iterator[Sample]:
    path = folder / shard.file
    due = first
    try:
        with ExitStack() as stack:
            samples = read_samples(open_shard(stack, path, shard), str(path), members)
            if beside is not None:
                sidecar = folder / beside[0].file
                samples = _joined(
                    samples, read_samples(open_shard(stack, sidecar, beside[0]), str(sidecar), {beside[1]}), beside[1]
                )
            for place, sample in enumerate(samples):
                if place >= last:
                    return
                if place >= first:
                    yield sample | {"__place__": place}
                    due = place + 1
    except (OSError, ValueError) as error:
        if not tolerant:
            raise UserError(f"{path}: {error}. {CURE}") from None
        for lost in range(due, last):
            yield {"__key__": "", "__url__": str(path), "__place__": lost, "__lost__": str(error)}


def open_shard(stack: ExitStack, path: Path, shard: Shard) -> BinaryIO:
    """Open a shard, fetched if need be, until the stack ends; OSError or ValueError if it is not what was packed."""
    remote, fault = origin(path.parent) is not None, None
    for _ in range(3):  # what was fetched may be damaged, or be removed again for want of space
        if remote:
            fetch(path, shard.bytes)
        try:
            file = stack.enter_context(path.open("rb", buffering=1 << 20))
            fault = distrust(path, shard, stamp(path))
            if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                continue  # another process has put a new copy in its place
            if fault is None:
                return file
        except FileNotFoundError:
            if not remote:
                raise
            continue
        if not remote:
            break
        path.unlink(missing_ok=True)
    fault = fault or "it was removed each time it was fetched: WCORD_CACHE_GB is too small for what is read at once"
    raise ValueError(fault if path.name.count(".") == 1 else f"{path.name} beside it: {fault}")


def _joined(samples: Iterator[Sample], others: Iterator[Sample], member: str) -> Iterator[Sample]:
    """Join by key what is in the same order, where some of the others may be missing."""
    other = next(others, None)
    for sample in samples:
        if other is not None and other["__key__"] == sample["__key__"]:
            sample["__beside__"] = other[member]
            other = next(others, None)
        yield sample


@cache
def distrust(path: Path, shard: Shard, stamp: tuple[int, int]) -> str | None:
    """Why a shard is not read: it is not what was packed, or a sample's members are not together; None if it is fine.

    Read to its end once a process; `stamp` is its size and time of change, so that it is read again if it changes.
    """
    if sha256(path) != shard.sha256:
        return f"its sha256 is not the one in {MANIFEST}: it was damaged or changed after packing"
    keys: set[str] = set()
    own: set[str] = set()
    last = None
    with path.open("rb", buffering=1 << 16) as file:
        for name, _ in read_members(file, lambda name: False):
            key, _, member = name.partition(".")
            if not (key and member):
                return f"{name} is not named KEY.MEMBER"
            if key != last:
                if key in keys:
                    return f"members of sample {key} stand apart from each other, or two samples have that key"
                keys.add(key)
                last, own = key, set()
            if member.lower() in own:
                return f"sample {key} has {member} twice"
            own.add(member.lower())
    return None if len(keys) == shard.samples else f"has {len(keys)} samples where {MANIFEST} says {shard.samples}"


def stamp(path: Path) -> tuple[int, int]:
    """Size in bytes and time of change in nanoseconds, by which a changed file is noticed."""
    about = path.stat()
    return about.st_size, about.st_mtime_ns


def read_samples(file: BinaryIO, path: str, members: Set[str]) -> Iterator[Sample]:
    """Raw samples of a tar: consecutive members of one key, which ends at the first dot, as WebDataset has it."""
    sample: Sample = {}
    for name, data in read_members(file, lambda name: name.partition(".")[2].lower() in members):
        key, _, member = name.partition(".")
        if sample and sample["__key__"] != key:
            yield sample
            sample = {}
        if not sample:
            sample = {"__key__": key, "__url__": path}
        if data is not None:
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
