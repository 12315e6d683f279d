"""Read one shard to its end, trusting nothing in it, and say what is there and what is wrong."""

from __future__ import annotations

import math
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.members import Facts, field_of, inspect, read_label, read_meta, summarise
from pipeline.parallel import tick
from pipeline.remote import fetch, origin
from pipeline.shards import MANIFEST, Shard, sha256

MOST_FAULTS = 20
"""Reported of one shard; a ruined shard should not bury the others."""

SMALL = ("label.txt", "meta.json", "text.txt")
REBUILD = "delete the shard and run the same `wcord pack` again"


@dataclass(frozen=True)
class Job:
    """A shard to be read. expected: fields that most samples have. classes: label name -> number of classes.

    masks: those labels that are masks.
    """

    folder: str
    split: str
    shard: Shard
    expected: tuple[str, ...]
    classes: Mapping[str, int]
    masks: tuple[str, ...]
    quick: bool


@dataclass
class Scan:
    """What was found in a shard; small, for it travels between processes.

    fields: member -> samples that have it. sizes: member -> smallest and largest `(width, height)`, by area.
    labels: label name -> class index -> samples. pixels: mask -> value -> pixels.
    depths: median reading in whole millimetres -> depth maps. ends: the smallest and the largest, each with its key.
    saturated: depth maps with many readings of 65535. coarse: those whose readings are all multiples of 10.
    askew: samples whose images differ in aspect ratio. lacking: expected field -> the first samples without it.
    without: expected field -> how many samples that are.
    """

    job: Job
    faults: list[str] = field(default_factory=list)
    unlisted: int = 0
    keys: list[str] = field(default_factory=list)
    groups: set[str] = field(default_factory=set)
    fields: Counter[str] = field(default_factory=Counter)
    labels: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    pixels: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    sizes: dict[str, tuple[tuple[int, int], tuple[int, int]]] = field(default_factory=dict)
    depths: Counter[int] = field(default_factory=Counter)
    ends: tuple[tuple[int, str], ...] = ()
    saturated: int = 0
    coarse: int = 0
    askew: int = 0
    lacking: dict[str, list[str]] = field(default_factory=dict)
    without: Counter[str] = field(default_factory=Counter)

    def fault(self, where: str, what: object) -> None:
        """Note a fault; beyond the first `MOST_FAULTS` they are only counted."""
        if len(self.faults) < MOST_FAULTS:
            self.faults.append(f"{self.job.shard.file}: {where}{': ' if where else ''}{what}")
        else:
            self.unlisted += 1


def scan(job: Job) -> Scan:
    """Read a shard; what is wrong with it becomes a fault, never an error. `quick`: images and sound stay closed."""
    found = Scan(job)
    path, shard = Path(job.folder) / job.shard.file, job.shard
    try:
        if origin(path.parent) is not None:
            fetch(path, shard.bytes)
            if sha256(path) != shard.sha256:  # a copy that was damaged, or of an earlier packing
                path.unlink(missing_ok=True)
                fetch(path, shard.bytes)
        if not path.is_file():
            found.fault("", f"the shard is missing; restore it, or {REBUILD.partition(' and ')[2]}")
            return found
        if (size := path.stat().st_size) != shard.bytes:
            found.fault("", f"{size} bytes, {MANIFEST} says {shard.bytes}: cut short or changed; {REBUILD}")
        elif not job.quick and sha256(path) != shard.sha256:
            found.fault("", f"its sha256 is not the one in {MANIFEST}: changed since packing; {REBUILD}")
        _samples(path, found)
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, OSError) as error:
        found.fault("", f"the tar is damaged after {len(found.keys)} samples ({error}); {REBUILD}")
    if len(found.keys) != shard.samples:
        found.fault("", f"{len(found.keys)} samples, {MANIFEST} says {shard.samples}; {REBUILD}")
    if found.unlisted:
        found.faults.append(f"{shard.file}: and {found.unlisted} more faults in this shard")
    return found


def _samples(path: Path, found: Scan) -> None:
    """Gather consecutive members of one key to samples, as WebDataset does."""
    key: str | None = None
    members: dict[str, bytes | None] = {}
    for name, data in _members(path, found):
        own, dot, member = name.partition(".")
        if not (own and dot and member) or "/" in name:
            found.fault(name, "not named KEY.MEMBER; other tools would skip or misread it; pack the data again")
            continue
        if own != key:
            if key is not None:
                _sample(key, members, found)
            key, members = own, {}
        if member in members:
            found.fault(name, "twice in one sample; pack the data again")
        members[member] = data
    if key is not None:
        _sample(key, members, found)


def _members(path: Path, found: Scan) -> Iterator[tuple[str, bytes | None]]:
    """Name and bytes of each file in a tar; None instead of bytes for what a quick scan does not open.

    Raises ValueError where the tar ends early: `tarfile` takes a bad header for the end, silently.
    """
    end = path.stat().st_size
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        while (info := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # it would keep every header
            if not info.isreg() or info.issparse():
                found.fault(info.name, "not a plain file; pack the data again")
            elif info.offset_data + info.size > end:
                raise ValueError(f"{info.name} is cut short")
            elif found.job.quick and not info.name.endswith(SMALL):
                yield info.name, None
            else:
                opened = tar.extractfile(info)
                yield info.name, opened.read() if opened else b""
        file.seek(tar.offset)
        if end - tar.offset < 1024:
            raise ValueError("its end mark is missing")
        while block := file.read(1 << 20):
            if block.strip(b"\0"):
                raise ValueError(f"no header where one should be, at byte {tar.offset}")


def _sample(key: str, members: Mapping[str, bytes | None], found: Scan) -> None:
    tick()
    found.keys.append(key)
    found.fields.update(members.keys())
    for name in set(found.job.expected) - set(map(field_of, members)):
        found.without[name] += 1
        if len(keys := found.lacking.setdefault(name, [])) < MOST_FAULTS:
            keys.append(key)
    facts: dict[str, Facts] = {}
    for member, data in members.items():
        if data is None:
            continue
        try:
            facts[member] = inspect(member, data)
            if (depth := facts[member].depth) is not None:
                _depth(key, depth, found)
            if member == "label.txt":
                found.labels["label"][in_range("label", read_label(data), found.job.classes)] += 1
            elif member == "meta.json":
                _meta(read_meta(data), found)
        except (ValueError, OverflowError, RecursionError) as error:
            found.fault(f"{key}.{member}", error)
    _add(key, facts, found)


def _meta(meta: Mapping[str, object], found: Scan) -> None:
    if "group" in meta:
        found.groups.add(str(meta["group"]))
    for name, index in labels_of(meta, found.job.classes):
        found.labels[name][index] += 1


def labels_of(meta: Mapping[str, object], classes: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Name and class index of each label in a `meta.json`; ValueError for one that is none of `classes`."""
    labels = meta.get("labels", {})
    if not isinstance(labels, dict):
        raise ValueError("`labels` is not an object of label name: class index")
    for name, label in labels.items():
        if not isinstance(label, int):
            raise ValueError(f"label `{name}` {label!r} is not a class index")
        yield name, in_range(name, label, classes)


def in_range(name: str, label: int, classes: Mapping[str, int]) -> int:
    """Raises ValueError for a label that the data set does not have, or that is out of range."""
    if (count := classes.get(name)) is None:
        raise ValueError(f"label `{name}` has no classes in {MANIFEST}; pack the data again")
    if not 0 <= label < count:
        raise ValueError(f"{name} {label} is out of range: there are {count} classes, 0 to {count - 1}")
    return label


def _add(key: str, facts: Mapping[str, Facts], found: Scan) -> None:
    """Add up what is known of a sample's images."""
    sizes = {member: fact.size for member, fact in facts.items() if fact.size}
    for member, size in sizes.items():
        known = (*found.sizes.get(member, ()), size)
        found.sizes[member] = min(known, key=math.prod), max(known, key=math.prod)
    found.askew += _spread(width / height for width, height in sizes.values()) > 1.03
    for name in found.job.masks:
        if (mask := facts.get(f"{name}.png", Facts()).mask) is not None:
            counts = np.bincount(mask.ravel())
            found.pixels[name] += Counter({int(value): int(counts[value]) for value in counts.nonzero()[0]})


def _depth(key: str, depth: np.ndarray, found: Scan) -> None:
    """Add up what is known of a depth map."""
    median, saturated, coarse = summarise(depth)
    own = (round(median), key)
    found.depths[own[0]] += 1
    found.ends = min((*found.ends, own)), max((*found.ends, own))
    found.saturated += saturated > 0.01
    found.coarse += coarse


def _spread(values: Iterable[float]) -> float:
    known = list(values) or [1.0]
    return max(known) / min(known)
