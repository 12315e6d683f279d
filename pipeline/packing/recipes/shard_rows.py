"""Finds the position, split, group and labels of each sample in WebDataset shards by reading tar headers only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import BinaryIO, NamedTuple

from pipeline.common.errors import UserError
from pipeline.common.process_pool import map_jobs
from pipeline.common.progress import Progress
from pipeline.common.spill import scratch
from pipeline.data.dataset import Shard
from pipeline.data.division import Division
from pipeline.data.label_value import ForeignLabel, LabelValue
from pipeline.data.shard_index import WORTH_PROCESSES, open_headers
from pipeline.data.stated_counts import refuted
from pipeline.data.tar import BLOCK, TWICE, group_members, read_members, split_name


class Row(NamedTuple):
    """A sample in a shard.

    Attributes:
        key: Its key in the shard.
        url: Path or URL of the shard.
        place: Index of the sample in the shard, starting at 0.
        start: Offset of its first header in bytes.
        stop: Offset of the end of its last member.
        split: The split.
        group: The group; "" if it has none.
        labels: Label -> class index, for the labels that the sample has.
        fault: Why the sample cannot be packed, else "".
    """

    key: str
    url: str
    place: int
    start: int
    stop: int
    split: str
    group: str
    labels: Mapping[str, int]
    fault: str


@dataclass(frozen=True)
class RowJob:
    """A shard to search for samples.

    Attributes:
        number: Index of the shard.
        url: Path or URL.
        size: Size in bytes.
        split: Split of the whole shard.
        division: The rule that assigns individual samples to splits instead, if there is one.
        names: Extension -> member, if members are renamed.
        group: Location of the group.
        labels: Label -> location of its value.
        strict: Whether a label without a valid value is an error. Otherwise, the sample is unlabelled.
        shard: Its entry in the manifest, to compare with what is found.
    """

    number: int
    url: str
    size: int
    split: str = ""
    division: Division | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    group: LabelValue | None = None
    labels: Mapping[str, ForeignLabel] = field(default_factory=dict)
    strict: bool = True
    shard: Shard | None = None

    def wants(self, name: str) -> bool:
        """Whether the content of a member is needed, judged by its name in the tar."""
        _, extension = split_name(name) or ("", "")
        own = self.names.get(extension, extension)
        return (
            any(own == label.value.member for label in self.labels.values())
            or (self.group is not None and own == self.group.member)
            or (self.division is not None and extension == self.division.member)
        )


def find_rows(jobs: Sequence[RowJob], workers: int) -> Iterator[Row]:
    """Find the samples of shards, in the order of the shards.

    Args:
        jobs: The shards.
        workers: Number of processes.

    Raises:
        UserError: A shard cannot be read.
    """
    db = scratch("rows (shard INTEGER, data TEXT)")
    if not jobs:
        return
    several = workers if sum(job.size for job in jobs) > WORTH_PROCESSES else 1
    with Progress("reading headers", len(jobs), "shards") as progress:
        for number, rows in map_jobs(_rows, jobs, several, lambda count: None):
            db.executemany("INSERT INTO rows VALUES (?, ?)", ((number, json.dumps(row)) for row in rows))
            progress.advance(1)
    for (data,) in db.execute("SELECT data FROM rows ORDER BY shard, rowid"):
        yield Row(*json.loads(data))


def read_piece(url: str, start: int, stop: int, key: str) -> dict[str, bytes]:
    """Read the members of one sample.

    Args:
        url: Path or URL of the shard.
        start: Offset of its first header in bytes.
        stop: Offset of the end of its last member.
        key: Its key.

    Returns:
        Member (as named in the shard) -> content.

    Raises:
        OSError: The shard cannot be read.
        ValueError: The sample is not at this position, so the shard has changed.
    """
    with open_headers(url, stop) as file:
        file.seek(start)
        tar = BytesIO(file.read(stop - start) + bytes(2 * BLOCK))
    try:
        members = list(read_members(tar, lambda name: True))
    except ValueError:
        members = []
    samples = dict(group_members(members))
    if list(samples) != [key]:
        raise ValueError(f"{url}: sample {key} is no longer where it was; the shard has changed")
    return {name: content for name, content in samples[key].items() if content is not None}


class _Member(NamedTuple):
    """A member on disk: its bytes, from header to padding, and its content if requested."""

    start: int
    stop: int
    data: bytes | None


def _rows(job: RowJob) -> tuple[int, list[Row]]:
    found: list[Row] = []
    extensions: set[str] = set()
    twice: list[str] = []  # for the sample that is being grouped
    try:
        with open_headers(job.url, job.size) as file:
            for key, held in group_members(
                _members(file, job), lambda name, fault: twice.append(f"{name}: {fault}") if fault == TWICE else None
            ):
                extensions.update(held)
                found.append(_row(job, key, len(found), held, twice))
                twice.clear()
    except (OSError, ValueError) as error:
        raise UserError(f"{job.url}: {error}. Repair the shard or exclude it.") from None
    if job.shard and (wrong := refuted(job.shard, job.url, len(found), extensions)) is not None:
        raise wrong
    return job.number, found


def _members(file: BinaryIO, job: RowJob) -> Iterator[tuple[str, _Member]]:
    start = 0
    for name, data in read_members(file, job.wants):
        stop = file.tell() + -file.tell() % BLOCK  # the padding after the content has not been read yet
        yield name, _Member(start, stop, data)
        start = stop


def _row(job: RowJob, key: str, place: int, held: Mapping[str, _Member], twice: Sequence[str]) -> Row:
    contents = {name: member.data for name, member in held.items()}
    split = job.division.split_of(key, contents) if job.division else job.split
    members = {job.names.get(name, name): data for name, data in contents.items()}
    labels: dict[str, int] = {}
    fault = "".join(twice[:1])
    for label, where in job.labels.items():
        if (data := members.get(where.value.member)) is not None:
            try:
                index = where.index(data)
                labels |= {label: index} if index >= 0 else {}
            except ValueError as error:
                fault = f"{where.value.member}: {error}" if job.strict else fault
    start, stop = min(member.start for member in held.values()), max(member.stop for member in held.values())
    return Row(key, job.url, place, start, stop, split, _group(job.group, members), labels, fault)


def _group(group: LabelValue | None, members: Mapping[str, bytes | None]) -> str:
    """The group of a sample; a sample without a group forms its own."""
    data = members.get(group.member) if group else None
    try:
        return group.read(data) if group and data is not None else ""
    except ValueError:
        return ""
