"""Reads raw samples from shards, with their members as bytes, and verifies the shards."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Set
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.common.disk_errors import machine_fault
from pipeline.common.errors import UserError
from pipeline.common.file_names import left_by
from pipeline.common.files import sha256
from pipeline.data.dataset import MANIFEST, Layout, Shard
from pipeline.data.reading import note
from pipeline.data.remote import fetch, origin
from pipeline.data.stated_counts import refuted
from pipeline.data.tar import UNNAMED, group_members, in_members, read_members
from pipeline.data.verified import once_a_machine

Sample = dict[str, Any]
"""A raw sample: `__key__`, `__url__`, … and member -> bytes. A prepared sample: name -> value of a batch."""

Slice = tuple[Shard, int, int]
"""A shard, and the range of samples to read from it: index of the first sample, and of the last one plus 1."""

LONGEST_NAME = 100
"""Maximum length in bytes of a name in a plain tar header."""

CURE = "Run `wcord check` on the dataset; delete the shard and pack again to rebuild it."
CURE_OTHERS = (
    "Write the shard again with the members of each sample adjacent (`tar --sort=name`), remove it from data.shards, "
    "or set data.max_faulty to skip samples that cannot be read."
)


def cure(shard: Shard) -> str:
    """The fix to suggest for a shard that cannot be read."""
    return CURE_OTHERS if shard.url else CURE


def read_range(
    layout: Layout,
    shards: Iterable[Shard],
    start: int,
    stop: int,
    members: frozenset[str],
    tolerant: bool = False,
) -> Iterator[Sample]:
    """Read raw samples `start` to `stop` of concatenated shards.

    Args:
        layout: Where to find the samples in the shards.
        shards: The shards.
        start: Index of the first sample.
        stop: Index of the last sample plus 1.
        members: The members to read.
        tolerant: Do not raise for a shard that cannot be read. Yield its samples without members instead, each with
            the reason as `__lost__`.

    Yields:
        Raw samples: the members as bytes, `__key__`, `__url__` (path of the shard), `__shard__` (its unique name in
        `dataset.json`) and `__place__` (index in the shard).

    Raises:
        UserError: A shard is missing, damaged or has changed, or members of a sample are not adjacent.
    """
    for shard, first, last in slices(shards, start, stop):
        yield from read_shard(layout, shard, first, last, members, tolerant)


def slices(shards: Iterable[Shard], start: int, stop: int) -> Iterator[Slice]:
    """Divide a range of samples of concatenated shards into ranges of single shards.

    Args:
        shards: The shards.
        start: Index of the first sample.
        stop: Index of the last sample plus 1.

    Yields:
        The slices, in the order of the shards. Shards without samples in the range are omitted.
    """
    offset = 0
    for shard in shards:
        first, last = max(start - offset, 0), min(stop - offset, shard.samples)
        offset += shard.samples
        if first < last:
            yield shard, first, last


def read_shard(
    layout: Layout,
    shard: Shard,
    first: int,
    last: int,
    members: frozenset[str],
    tolerant: bool,
    beside: tuple[Shard, str] | None = None,
) -> Iterator[Sample]:
    """Read raw samples of one shard; see `read_range`.

    Args:
        layout: Where to find the samples in the shard.
        shard: The shard.
        first: Index of the first sample in the shard.
        last: Index of the last sample plus 1.
        members: The members to read.
        tolerant: Do not raise for a shard that cannot be read.
        beside: The cached-feature shard, and its member to read as `__cached__`; None if there is no cache.

    Yields:
        Raw samples.

    Raises:
        UserError: The shard cannot be read, or, also if `tolerant`, the machine fails: a full disk, no permission.
    """
    path = shard.path(layout.folder)
    due = first
    try:
        with ExitStack() as stack:
            samples = read_samples(open_shard(stack, path, shard), str(path), members, layout)
            if beside is not None:
                sidecar = layout.folder / beside[0].file
                others = read_samples(open_shard(stack, sidecar, beside[0]), str(sidecar), {beside[1]})
                samples = _joined(samples, others, beside[1])
            for place, sample in enumerate(samples):
                if place >= last:
                    return
                if place >= first:
                    yield sample | {"__shard__": shard.file, "__place__": place}
                    due = place + 1
    except (OSError, ValueError) as error:
        if fault := machine_fault(error, path):
            raise fault from None
        if not tolerant:
            raise UserError(f"{path}: {error}. {cure(shard)}") from None
        for lost in range(due, last):
            about = {"__key__": "", "__url__": str(path), "__shard__": shard.file, "__place__": lost}
            yield about | {"__lost__": f"{error}. {cure(shard)}"}


def open_shard(stack: ExitStack, path: Path, shard: Shard) -> BinaryIO:
    """Open a shard. It is downloaded if needed, and verified.

    Args:
        stack: Closes the file.
        path: Local path of the shard.
        shard: Its entry in the manifest.

    Raises:
        OSError: The shard cannot be opened.
        ValueError: The shard is not what was packed or indexed.
    """
    place = origin(path.parent)
    note(f"{place}/{path.name}" if place else str(path))
    remote, fault = place is not None, None
    for _ in range(3):  # a download may be damaged, or evicted right away
        if remote:
            fetch(path, shard.bytes, shard.state)
        try:
            file = stack.enter_context(path.open("rb", buffering=1 << 20))
            fault = verify_shard(path, shard, stamp(path))
            if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                continue  # another process has replaced it
            if fault is None:
                return file
        except FileNotFoundError:
            if not remote:
                raise
            continue
        if not remote:
            break
        path.unlink(missing_ok=True)
    fault = fault or "it was evicted after each download; raise WCORD_CACHE_GB to the size of all shards in use"
    raise ValueError(fault if shard.url or path.name.count(".") == 1 else f"its cached features, {path.name}: {fault}")


def _joined(samples: Iterator[Sample], others: Iterator[Sample], member: str) -> Iterator[Sample]:
    """Join by key. Both have the same order, but `others` may lack samples."""
    other = next(others, None)
    for sample in samples:
        if other is not None and other["__key__"] == sample["__key__"]:
            sample["__cached__"] = other[member]
            other = next(others, None)
        yield sample


@cache
def verify_shard(path: Path, shard: Shard, stamp: tuple[int, int]) -> str | None:
    """Verify that a shard is what was packed or indexed, and that members of each sample are adjacent.

    The shard is read completely, once per machine, and again if it changes.

    Args:
        path: Local path of the shard.
        shard: Its entry in the manifest.
        stamp: Size and modification time of the file.

    Returns:
        The problem, or None if the shard is valid.

    Raises:
        UserError: The shard is valid, but it has another number of samples than was stated, or other members than the
            first samples, so that the plan of the epoch is wrong.
    """
    about = f"{stamp} {shard.content} {shard.total or shard.samples}"
    about += f" {' '.join(shard.stated.extensions)}" if shard.stated else ""
    return once_a_machine(path, about, partial(_examine, path, shard))


def _examine(path: Path, shard: Shard) -> str | None:
    if shard.sha256 and sha256(path) != shard.sha256:
        return f"its SHA-256 differs from the one in {MANIFEST}: it was damaged or changed after packing"
    if (size := path.stat().st_size) != shard.bytes:
        return f"has {size} bytes instead of {shard.bytes} as in {MANIFEST}: truncated or changed"
    keys, extensions = set[str](), set[str]()
    faults: list[str] = []
    with path.open("rb", buffering=1 << 16) as file:
        members = read_members(file, lambda name: False)
        for key, held in group_members(members, partial(_note, faults, shard)):
            extensions.update(held)
            if key in keys:
                faults.append(f"members of sample {key} are not adjacent, or two samples have this key")
            if faults:
                return faults[0]
            keys.add(key)
    if faults:
        return faults[0]
    expected = shard.total or shard.samples
    if (error := refuted(shard, path, len(keys), extensions)) is not None:
        raise error  # no policy allows it: the epoch was planned with another number
    return None if len(keys) == expected else f"has {len(keys)} samples instead of {expected} as in {MANIFEST}"


def _note(faults: list[str], shard: Shard, name: str, fault: str) -> None:
    """Record a faulty member.

    Foreign shards may contain members that do not belong to a sample. However, a name that fills its header may be the
    truncated name of a sample's member, so it always counts as an error.
    """
    if shard.url and left_by(name):
        return
    if not (shard.url and fault == UNNAMED and len(name) < LONGEST_NAME):
        faults.append(f"{name} is {fault}")


def stamp(path: Path) -> tuple[int, int]:
    """Size in bytes and modification time in nanoseconds of a file."""
    about = path.stat()
    return about.st_size, about.st_mtime_ns


def read_samples(file: BinaryIO, path: str, members: Set[str], layout: Layout | None = None) -> Iterator[Sample]:
    """Read the raw samples of a tar.

    Args:
        file: The tar.
        path: Its path, which becomes `__url__`.
        members: The members to read.
        layout: Names of members, and the split to read; None for a packed shard.

    Yields:
        Raw samples: `__key__`, `__url__`, and the members as bytes.

    Raises:
        ValueError: The tar is damaged.
    """
    names = layout.names if layout else {}
    division = layout.division if layout else None
    wanted = {name for name in members if name not in names} | {name for name, own in names.items() if own in members}
    read = wanted | {division.member} if division else wanted
    for key, held in group_members(read_members(file, in_members(read))):
        if division and layout and division.split_of(key, held) != layout.split:
            continue
        sample: Sample = {"__key__": key, "__url__": path}
        for name, data in held.items():
            if data is not None and name in wanted:
                sample.setdefault(names.get(name, name), data)
        yield sample
