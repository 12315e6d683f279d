"""Indexes foreign shards by their tar headers: samples, sizes, members and label values. The counts are stored.

Sample counts that other tools have stored are used: the wids index of webdataset, and img2dataset's statistics. A
little over 350 lines, because counted and stated shards are stored and checked in the same way.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.common.errors import UserError
from pipeline.common.file_names import left_by
from pipeline.common.files import sha256
from pipeline.common.process_pool import map_jobs
from pipeline.data.division import Division
from pipeline.data.http_reader import NoRanges
from pipeline.data.label_value import LARGEST, LabelValue
from pipeline.data.range_reader import RangeReader
from pipeline.data.remote import THREADS, fetch_whole, info, is_remote, patiently, read_block
from pipeline.data.stated_counts import Statement, is_trusted
from pipeline.data.tar import group_members, in_members, read_members

COUNTS = "counts.jsonl"
WORTH_PROCESSES = 64 << 20
"""Total size of the shards in bytes below which starting processes takes longer than counting."""

VERSIONS = ("ETag", "etag", "mtime", "LastModified", "Last-Modified", "blob_id")
"""Keys under which stores report the version of an object."""

MOST_VALUES = 100_000
"""Maximum number of distinct values of a label; a member with more values is not a class label."""


Job = tuple[str, int, str]
"""URL, size in bytes and state of a shard."""

Find = Callable[[Mapping[str, int]], Mapping[str, Statement]]
"""Finds stated numbers of samples; see `stated_counts`."""

log = logging.getLogger(__name__)


class Count(BaseModel):
    """The content of one shard.

    Attributes:
        url: URL or absolute path.
        bytes: File size in bytes.
        state: Modification time, or the version that the store reports; it changes with the shard.
        samples: Number of samples.
        fields: Member -> number of samples that have it.
        splits: Split -> number of samples; {} if splits consist of whole shards.
        labels: Label -> its distinct values.
        held: Split -> label -> its distinct values; {} if splits consist of whole shards.
        left: Name of operating-system files, as of `left_by` -> their number. They are skipped.
        sha256: SHA-256 of the file, or "" if it was not computed.
        stated: URL or path of the file that states the number of samples; "" if they were counted. If they were not,
            `fields` is about the first sample.
        fault: Why the shard cannot be read to its end; "" if it can. The counts are then about what is before.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    url: str
    bytes: int
    state: str
    samples: int
    fields: dict[str, int]
    splits: dict[str, int]
    labels: dict[str, list[str]]
    held: dict[str, dict[str, list[str]]] = {}  # older indexes lack it
    left: dict[str, int]
    sha256: str
    stated: str = ""
    fault: str = ""


@dataclass(frozen=True)
class Wanted:
    """What to count besides samples and members.

    Attributes:
        labels: Name of each label, as in `data.label`, and its location.
        division: The rule that divides the samples of a shard among splits, if there is one.
        hashed: Whether to compute the SHA-256 of local shards, which reads them completely.
        tolerant: Whether to count a damaged shard as far as it can be read. Otherwise, it is an error.
    """

    labels: tuple[tuple[str, LabelValue], ...] = ()
    division: Division | None = None
    hashed: bool = False
    tolerant: bool = field(default=False, repr=False)  # does not change what is stored

    @property
    def members(self) -> frozenset[str]:
        """Members whose content is needed."""
        own = {value.member for _, value in self.labels}
        return frozenset(own | ({self.division.member} if self.division and self.division.member else set()))


def count_shards(
    urls: Sequence[str],
    wanted: Wanted,
    folder: Path,
    workers: int,
    advance: Callable[[int], None],
    stated: Find = lambda sizes: {},
) -> list[Count]:
    """Count the content of shards. Shards that have not changed since the last call are not counted again.

    Args:
        urls: URLs or paths of shards.
        wanted: What to count.
        folder: Folder that stores the counts. Each count is written at once, so an interrupted call resumes.
        workers: Number of processes.
        advance: Called with the number of shards counted since its last call.
        stated: Finds the stated numbers of samples by the sizes of shards; see `stated_counts`.

    Returns:
        The counts, in the order of the shards.

    Raises:
        UserError: A shard cannot be reached, or it is damaged and `wanted` is not tolerant. The message names the first
            one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / COUNTS
    about = f"{wanted!r}"
    known = {c.url: c for said, c in _remembered(file) if said == about and (not c.stated or is_trusted(c.stated))}
    states = dict(zip(urls, states_of(urls), strict=True))
    fresh = [url for url in urls if url not in known or (known[url].bytes, known[url].state) != states[url]]
    advance(len(urls) - len(fresh))
    jobs: list[Job] = [(url, *states[url]) for url in fresh]
    found = _stated(jobs, wanted, stated)
    rest = [job for job in jobs if job[0] not in found]
    with file.open("a+b") as memory:
        _end_line(memory)
        for count in chain(found.values(), _counts(rest, wanted, workers)):
            known[count.url] = count
            if count.fault:
                _report(count, wanted.tolerant)
            else:
                memory.write(json.dumps({"wanted": about, "count": count.model_dump()}).encode() + b"\n")
                memory.flush()
            advance(1)
    return [known[url] for url in urls]


def _report(count: Count, tolerant: bool) -> None:
    """Report a damaged shard. It is not stored, so it is reported at each use, until it is repaired."""
    if not tolerant:
        raise UserError(
            f"{count.url}: {count.fault}. Repair the shard or remove it from data.shards, or set data.max_faulty to "
            "skip what cannot be read."
        )
    log.warning(
        f"{count.url}: {count.fault}. The shard is skipped: the {count.samples} samples before the damage count as "
        "faulty (data.max_faulty); samples after it cannot be counted. Repair the shard or remove it from data.shards."
    )


def _stated(jobs: Sequence[Job], wanted: Wanted, stated: Find) -> dict[str, Count]:
    """Shards whose number of samples is stated: only their first sample is read, for its members.

    Labels are in the samples, so if a sample has one, all shards have to be counted.
    """
    if not jobs or wanted.division or wanted.hashed:
        return {}
    found = stated({url: size for url, size, _ in jobs})
    with ThreadPoolExecutor(THREADS) as pool:
        counts = pool.map(lambda job: _first(job, found[job[0]]), [job for job in jobs if job[0] in found])
        usable = {count.url: count for count in counts if count is not None}
    if any(wanted.members & count.fields.keys() for count in usable.values()):
        return {}
    if usable:
        by = next(iter(usable.values())).stated
        log.info(
            f"the numbers of samples of {len(usable)} of {len(jobs)} shards are stated in files such as {by}; each is "
            "verified when its shard is first read"
        )
    return usable


def _first(job: Job, stated: Statement) -> Count | None:
    """Read the first sample of a shard; None if there should be none, or if it cannot be read."""
    url, size, state = job
    with suppress(OSError, ValueError), open_headers(url, size) as file:
        _refuse_gzip(file)
        for _, members in group_members(read_members(file, lambda name: False)):
            if stated.samples == 0:
                return None
            return Count(
                url=url,
                bytes=size,
                state=state,
                samples=stated.samples,
                fields=dict.fromkeys(sorted(members), stated.samples),
                splits={},
                labels={},
                left={},
                sha256="",
                stated=stated.by,
            )
    return None


def _counts(jobs: Sequence[Job], wanted: Wanted, workers: int) -> Iterator[Count]:
    """Count remote shards in threads, which mostly wait for the store, and large local ones in processes."""
    if any(is_remote(url) for url, _, _ in jobs):
        with ThreadPoolExecutor(THREADS) as pool:
            yield from pool.map(partial(_count, wanted=wanted), jobs)
        return
    size = sum(size for _, size, _ in jobs)
    yield from map_jobs(partial(_count, wanted=wanted), jobs, workers if size > WORTH_PROCESSES else 1, lambda _: None)


def _end_line(memory: BinaryIO) -> None:
    """Make sure that the next record begins on a new line, even after a truncated one."""
    memory.seek(max(memory.seek(0, 2) - 1, 0))
    if memory.read(1) not in (b"", b"\n"):
        memory.write(b"\n")


def _remembered(file: Path) -> Iterator[tuple[str, Count]]:
    """The stored counts; truncated lines are ignored."""
    if file.exists():
        for line in file.read_bytes().splitlines():
            with suppress(ValueError, KeyError, TypeError, ValidationError):
                row = json.loads(line)
                yield row["wanted"], Count.model_validate(row["count"])


def states_of(urls: Sequence[str]) -> list[tuple[int, str]]:
    """Size in bytes of each shard, and its modification time or version.

    Args:
        urls: URLs or paths of shards.

    Raises:
        UserError: A shard does not exist or cannot be read.
    """
    with ThreadPoolExecutor(THREADS) as pool:  # hides the latency of a store
        return list(pool.map(_state, urls))


def _state(url: str) -> tuple[int, str]:
    try:
        if not is_remote(url):
            about = Path(url).stat()
            return about.st_size, str(about.st_mtime_ns)
        found = info(url)
    except OSError as error:
        raise UserError(f"{url}: cannot be read ({error}). Check data.shards and your permissions.") from None
    if found.get("size") is None:
        raise UserError(
            f"{url}: the server does not report the file size, which range requests require. Download the shard."
        )
    return int(found["size"]), str(next((found[key] for key in VERSIONS if found.get(key)), ""))


def _count(job: Job, wanted: Wanted) -> Count:
    """Read the headers of one shard."""
    url, size, state = job
    fault = ""
    samples, fields, splits, left = 0, Counter[str](), Counter[str](), Counter[str]()
    values: dict[str, dict[str, set[str]]] = {}
    try:
        with open_headers(url, size) as file:
            _refuse_gzip(file)
            read = read_members(file, in_members(wanted.members))
            for key, members in group_members(read, partial(_skip, left)):
                samples += 1
                fields.update(members.keys())
                split = wanted.division.split_of(key, members) if wanted.division else ""
                splits[split] += 1
                _collect(values.setdefault(split, {label: set() for label, _ in wanted.labels}), wanted, members)
    except (OSError, ValueError) as error:
        fault = str(error)
    union = {label: set().union(*(own[label] for own in values.values())) for label, _ in wanted.labels}
    labels = {label: sorted(found) for label, found in union.items() if 0 < len(found) <= MOST_VALUES}
    held = {split: {label: sorted(own[label]) for label in labels} for split, own in values.items()}
    digest = sha256(Path(url)) if wanted.hashed and not is_remote(url) else ""
    return Count(
        url=url,
        bytes=size,
        state=state,
        samples=samples,
        fields=dict(sorted(fields.items())),
        splits=dict(splits) if wanted.division else {},
        labels=labels,
        held=held if wanted.division else {},
        left=dict(left),
        sha256=digest,
        fault=fault,
    )


def _skip(left: Counter[str], name: str, fault: str) -> None:
    """Skip a faulty member, which reading reports. Operating-system files are counted."""
    if kind := left_by(name):
        left[kind] += 1


def _collect(values: dict[str, set[str]], wanted: Wanted, members: dict[str, bytes | None]) -> None:
    """Add the label values of a sample. Values that cannot be read are ignored here; training reports them."""
    for label, where in wanted.labels:
        data = members.get(where.member)
        if data is not None and len(data) <= LARGEST and len(values[label]) <= MOST_VALUES:
            with suppress(ValueError):
                values[label].add(where.read(data))


@contextmanager
def open_headers(url: str, size: int) -> Iterator[BinaryIO]:
    """Open a shard to read headers or pieces of it; a remote one is read by range requests, or else whole.

    Args:
        url: Its path or URL.
        size: Its size in bytes, or the end of what is read.
    """
    if not is_remote(url):
        with Path(url).open("rb", buffering=1 << 16) as file:
            yield file
        return

    def fetch(start: int, stop: int) -> bytes:
        pieces = b""
        while len(pieces) < stop - start:
            begin = start + len(pieces)
            pieces += patiently(url, partial(_piece, begin, stop))
        return pieces

    try:
        patiently(url, partial(_piece, 0, 1))
    except NoRanges:
        with TemporaryFile() as file:
            fetch_whole(url, file, size)
            file.seek(0)
            yield cast(BinaryIO, file)
        return
    yield cast(BinaryIO, RangeReader(fetch, size))


def _piece(start: int, stop: int, fs: Any, path: str, failures: int) -> bytes:
    return read_block(fs, path, start, stop)


def _refuse_gzip(file: BinaryIO) -> None:
    start = file.read(2)
    file.seek(0)
    if start == b"\x1f\x8b":
        raise ValueError(
            "the tar is compressed with gzip, which does not allow random access; decompress it (`gunzip`)"
        )
