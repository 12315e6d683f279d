"""Reads and validates one shard, which may be damaged, and reports its content and problems."""

from __future__ import annotations

import math
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.common.disk_errors import machine_fault
from pipeline.common.files import sha256
from pipeline.common.process_pool import report_progress
from pipeline.data.dataset import MANIFEST, Layout, Shard
from pipeline.data.decoding import check_pixels
from pipeline.data.label_value import ForeignLabel
from pipeline.data.member_formats import Facts, field_of, inspect, near_part, read_label, read_meta, summarise
from pipeline.data.remote import fetch, origin
from pipeline.data.stated_counts import refuted
from pipeline.data.tar import UNNAMED, group_members
from pipeline.packing.duplicates import hashes_of, look
from pipeline.packing.pairs import SAME, mismatched

MOST_FAULTS = 20
"""Maximum number of reported problems per shard."""

SMALL = ("label.txt", "meta.json", "text.txt", "json")
REBUILD = "delete the shard and run the same `wcord pack` again"
REWRITE = "restore or write the shard again, then run the same `wcord index` again"


@dataclass(frozen=True)
class ScanJob:
    """A shard to read.

    Attributes:
        layout: The folder of the dataset, and where to find the samples in its shards.
        split: Name of the split.
        shard: Its entry in `dataset.json`.
        expected: Fields that most samples have.
        classes: Label name -> number of classes.
        masks: Labels that are masks.
        foreign: Label name -> its location in the shards, for datasets that wcord did not pack.
        quick: Do not decode images and audio, and do not compute hashes.
        looks: Compute perceptual hashes of photos, to find near duplicates.
    """

    layout: Layout
    split: str
    shard: Shard
    expected: tuple[str, ...]
    classes: Mapping[str, int]
    masks: tuple[str, ...]
    quick: bool
    foreign: Mapping[str, ForeignLabel] = field(default_factory=dict)
    looks: bool = False

    @property
    def small(self) -> tuple[str, ...]:
        """Extensions of the members that a quick scan opens as well."""
        return (*SMALL, *(f".{name}" for name, own in self.layout.names.items() if own in SMALL))


@dataclass
class Scan:
    """The result of scanning a shard. It is small, since it is sent between processes.

    Attributes:
        job: The shard.
        faults: Problems, at most MOST_FAULTS.
        unlisted: Number of further problems.
        keys: Keys of the samples.
        groups: Groups of the samples.
        fields: Member -> number of samples that contain it.
        labels: Label name -> class index -> number of samples.
        pixels: Mask -> value -> number of pixels.
        sizes: Member -> smallest and largest `(width, height)` by area.
        depths: Median depth in whole millimetres -> number of depth maps.
        near: 10th percentile of the depth in whole millimetres -> number of depth maps.
        ends: Smallest and largest median depth, each with its key.
        saturated: Number of depth maps with many values of 65535.
        coarse: Number of depth maps in which all values are multiples of 10.
        askew: Number of samples whose images have different aspect ratios.
        doubtful: Number of samples whose photo is rotated by EXIF, while its map may not be.
        doubt: The first of these samples and the reason, as text.
        hashes: Field, content hash and key of each member; for perceptual hashes, `look` instead of the field.
        lacking: Expected field -> keys of the first samples without it.
        without: Expected field -> number of samples without it.
    """

    job: ScanJob
    faults: list[str] = field(default_factory=list)
    unlisted: int = 0
    keys: list[str] = field(default_factory=list)
    groups: set[str] = field(default_factory=set)
    fields: Counter[str] = field(default_factory=Counter)
    labels: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    pixels: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    sizes: dict[str, tuple[tuple[int, int], tuple[int, int]]] = field(default_factory=dict)
    depths: Counter[int] = field(default_factory=Counter)
    near: Counter[int] = field(default_factory=Counter)
    ends: tuple[tuple[int, str], ...] = ()
    saturated: int = 0
    coarse: int = 0
    askew: int = 0
    doubtful: int = 0
    doubt: str = ""
    hashes: list[tuple[str, int, str]] = field(default_factory=list)
    lacking: dict[str, list[str]] = field(default_factory=dict)
    without: Counter[str] = field(default_factory=Counter)

    def fault(self, where: str, what: object) -> None:
        """Add a problem. Beyond `MOST_FAULTS`, problems are only counted."""
        if len(self.faults) < MOST_FAULTS:
            self.faults.append(f"{self.job.shard.file}: {where}{': ' if where else ''}{what}")
        else:
            self.unlisted += 1


def scan(job: ScanJob) -> Scan:
    """Read a shard. Every problem is added to `faults`; none raises an exception.

    Raises:
        UserError: The machine fails: no permission, too many open files.
    """
    found = Scan(job)
    path, shard = job.shard.path(job.layout.folder), job.shard
    cure, whole = REWRITE if shard.url else REBUILD, False
    try:
        if origin(path.parent) is not None:
            fetch(path, shard.bytes, shard.state)
            if shard.sha256 and sha256(path) != shard.sha256:  # the local copy is damaged or outdated
                path.unlink(missing_ok=True)
                fetch(path, shard.bytes, shard.state)
        if not path.is_file():
            found.fault("", f"the shard is missing; restore it, or run {cure.rpartition('run ')[2]}")
            return found
        if (size := path.stat().st_size) != shard.bytes:
            found.fault("", f"has {size} bytes instead of {shard.bytes} as in {MANIFEST}: truncated or changed; {cure}")
        elif not job.quick and shard.sha256 and sha256(path) != shard.sha256:
            found.fault("", f"its SHA-256 differs from the one in {MANIFEST}: changed since packing; {cure}")
        _samples(path, found)
        whole = size == shard.bytes
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, OSError) as error:
        if machine := machine_fault(error, path):
            raise machine from None
        found.fault("", f"the tar is damaged after {len(found.keys)} samples ({error}); {cure}")
    if whole and (stated := refuted(shard, path, len(found.keys), found.fields, job.layout.names)) is not None:
        found.fault("", stated)
    elif len(found.keys) != shard.samples:
        found.fault("", f"has {len(found.keys)} samples instead of {shard.samples} as in {MANIFEST}; {cure}")
    if found.unlisted:
        found.faults.append(f"{shard.file}: and {found.unlisted} more problems in this shard")
    return found


def _samples(path: Path, found: Scan) -> None:
    """Group consecutive members with the same key into samples, as WebDataset does, and scan each."""
    layout, of_others = found.job.layout, bool(found.job.shard.url)

    def fault(name: str, what: str) -> None:
        if what == UNNAMED and of_others:  # e.g. a README of the authors
            return
        others = "; other tools would skip or misread it" if what == UNNAMED else ""
        found.fault(name, f"{what}{others}; {'write the shard' if of_others else 'pack the data'} again")

    for key, members in group_members(_members(path, found), fault):
        if layout.division is None or layout.division.split_of(key, members) == layout.split:
            _sample(key, {layout.names.get(name, name): data for name, data in members.items()}, found)


def _members(path: Path, found: Scan) -> Iterator[tuple[str, bytes | None]]:
    """Name and bytes of each file in a tar; None instead of bytes for members that a quick scan does not open.

    Raises:
        ValueError: The tar is truncated. `tarfile` silently treats an invalid header as the end.
    """
    end = path.stat().st_size
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        while (info := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # else it keeps every header in memory
            if not info.isreg() or info.issparse():
                found.fault(info.name, "not a plain file; pack the data again")
            elif info.offset_data + info.size > end:
                raise ValueError(f"{info.name} is truncated")
            elif found.job.quick and not info.name.lower().endswith(found.job.small):
                yield info.name, None
            else:
                opened = tar.extractfile(info)
                yield info.name, opened.read() if opened else b""
        file.seek(tar.offset)
        if end - tar.offset < 1024:
            raise ValueError("the end-of-archive marker is missing")
        while block := file.read(1 << 20):
            if block.strip(b"\0"):
                raise ValueError(f"missing header at byte {tar.offset}")


def _sample(key: str, members: Mapping[str, bytes | None], found: Scan) -> None:
    report_progress()
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
            for label, foreign in found.job.foreign.items():
                if foreign.value.member == member and (index := foreign.index(data)) >= 0:
                    found.labels[label][index] += 1
            if found.job.foreign and member in ("label.txt", "meta.json"):
                continue  # in shards that wcord did not pack, these members have another format
            check_pixels(data)
            facts[member] = inspect(member, data)
            if (depth := facts[member].depth) is not None:
                add_depth(key, depth, found)
            if member == "label.txt":
                found.labels["label"][in_range("label", read_label(data), found.job.classes)] += 1
            elif member == "meta.json":
                _meta(read_meta(data), found)
        except (ValueError, OverflowError, RecursionError) as error:
            found.fault(f"{key}.{member}", error)
    _add(key, facts, found)
    if not found.job.quick:
        found.hashes += [(name, number, key) for name, number in hashes_of(members, facts)]
    for member, data in members.items():
        if found.job.looks and data is not None and member in facts and field_of(member) == "rgb":
            seen = look(data)
            found.hashes += [] if seen is None else [("look", seen, key)]


def _meta(meta: Mapping[str, object], found: Scan) -> None:
    if "group" in meta:
        found.groups.add(str(meta["group"]))
    for name, index in labels_of(meta, found.job.classes):
        found.labels[name][index] += 1


def labels_of(meta: Mapping[str, object], classes: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Yield name and class index of each label in a `meta.json`.

    Raises:
        ValueError: A label is not an index of `classes`.
    """
    labels = meta.get("labels", {})
    if not isinstance(labels, dict):
        raise ValueError("`labels` is not an object of label name: class index")
    for name, label in labels.items():
        if not isinstance(label, int):
            raise ValueError(f"label `{name}` {label!r} is not a class index")
        yield name, in_range(name, label, classes)


def in_range(name: str, label: int, classes: Mapping[str, int]) -> int:
    """Check that a label is valid, and return it.

    Raises:
        ValueError: The dataset does not have the label, or it is out of range.
    """
    if (count := classes.get(name)) is None:
        raise ValueError(f"label `{name}` has no classes in {MANIFEST}; pack the data again")
    if not 0 <= label < count:
        raise ValueError(f"{name} {label} is out of range: there are {count} classes, from 0 to {count - 1}")
    return label


def _add(key: str, facts: Mapping[str, Facts], found: Scan) -> None:
    """Add the sizes and masks of a sample."""
    sizes = {member: fact.size for member, fact in facts.items() if fact.size}
    for member, size in sizes.items():
        known = (*found.sizes.get(member, ()), size)
        found.sizes[member] = min(known, key=math.prod), max(known, key=math.prod)
    pair = mismatched(facts)
    if pair is not None and pair.certain:
        found.fault(key, pair.reason)
    elif _spread(width / height for width, height in sizes.values()) > SAME:
        found.askew += 1
    elif pair is not None:
        found.doubtful += 1
        found.doubt = found.doubt or f"{key}: {pair.reason}"
    for name in found.job.masks:
        if (mask := facts.get(f"{name}.png", Facts()).mask) is not None:
            counts = np.bincount(mask.ravel())
            found.pixels[name] += Counter({int(value): int(counts[value]) for value in counts.nonzero()[0]})


def add_depth(key: str, depth: np.ndarray, found: Scan) -> None:
    """Add the statistics of a depth map."""
    median, saturated, coarse = summarise(depth)
    own = (round(median), key)
    found.depths[own[0]] += 1
    found.near[round(near_part(depth))] += 1
    found.ends = min((*found.ends, own)), max((*found.ends, own))
    found.saturated += saturated > 0.01
    found.coarse += coarse


def _spread(values: Iterable[float]) -> float:
    known = list(values) or [1.0]
    return max(known) / min(known)
