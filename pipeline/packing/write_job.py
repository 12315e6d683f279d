"""Writes one shard of a packing in any process: reads and validates its samples, and stores a summary."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePath

from pydantic import BaseModel, ValidationError

from pipeline.common.disk_errors import machine_fault
from pipeline.common.process_pool import report_progress
from pipeline.data.dataset import Shard
from pipeline.data.foreign import PACKING
from pipeline.data.member_formats import Facts, inspect, read_label, read_meta
from pipeline.packing.duplicates import encode_hashes, hashes_of
from pipeline.packing.pairs import mismatched
from pipeline.packing.recipes.plan import Excluded, Refusal, SourceSample
from pipeline.packing.shard_jobs import ShardJob
from pipeline.packing.target import Target, target_of


class Summary(BaseModel):
    """The stored result of a finished job.

    Attributes:
        job: Digest of the job.
        shard: Its entry in `dataset.json`.
        fields: Member -> number of samples that have it.
        refused: Rejected samples.
        excluded: Number of samples that a filter excluded.
        contents: Field -> content hashes of its members, int64 in base64.
        mismatched: Number of samples whose images cannot show the same scene.
        doubtful: Number of samples whose photo is rotated by EXIF, while its map may not be.
        mismatch: The first of these samples and the reason, as text.
    """

    job: str
    shard: Shard
    fields: dict[str, int]
    refused: list[Refusal]
    excluded: int = 0
    contents: dict[str, str] = {}
    mismatched: int = 0
    doubtful: int = 0
    mismatch: str = ""


class Seen:
    """Collects checks over the samples of a shard: content hashes, and mismatched images."""

    def __init__(self) -> None:
        self.hashes: dict[str, list[int]] = defaultdict(list)
        self.pairs: Counter[bool] = Counter()
        self.first = ""

    def add(self, key: str, members: Mapping[str, bytes], facts: Mapping[str, Facts]) -> None:
        """Add a sample that is packed."""
        for name, number in hashes_of(members, facts):
            self.hashes[name].append(number)
        if (pair := mismatched(facts)) is not None:
            self.pairs[pair.certain] += 1
            self.first = self.first or f"{key}: {pair.reason}"

    def found(self) -> dict[str, object]:
        """The values for the summary."""
        packed = {name: encode_hashes(numbers) for name, numbers in self.hashes.items()}
        pairs = {"mismatched": self.pairs[True], "doubtful": self.pairs[False], "mismatch": self.first}
        return {"contents": packed, **pairs}


def write_job(job: ShardJob) -> Summary:
    """Read, validate and write one shard, then its summary. Runs in a worker process."""
    target = target_of(job.folder)
    if summary := _finished(job, target, target.size):
        report_progress(len(job.samples))
        return summary
    refused: list[Refusal] = []
    fields: Counter[str] = Counter()
    excluded = 0
    seen = Seen()

    def sound() -> Iterator[tuple[str, Mapping[str, bytes]]]:
        nonlocal excluded
        for index, sample in job.samples:
            report_progress()
            try:
                members, faults, facts = _open(index, sample, job)
            except Excluded:
                excluded += 1
                continue
            refused.extend(faults)
            if not faults:
                fields.update(members.keys())
                seen.add(sample.key, members, facts)
                yield sample.key, members

    shard = target.write_shard(job.file, sound())
    summary = Summary(
        job=job.digest, shard=shard, fields=dict(sorted(fields.items())), refused=refused, excluded=excluded
    ).model_copy(update=seen.found())
    target.write(summary_name(job.file), summary.model_dump_json().encode())
    return summary


def finished(jobs: Sequence[ShardJob], target: Target) -> dict[str, Summary]:
    """File -> summary, for the finished jobs whose tar exists."""
    sizes = target.sizes()
    begun = [job for job in jobs if summary_name(job.file) in sizes]
    with ThreadPoolExecutor(16) as pool:  # requests to a store are slow
        found = pool.map(lambda job: _finished(job, target, sizes.get), begun)
        return {summary.shard.file: summary for summary in found if summary}


def _finished(job: ShardJob, target: Target, size: Callable[[str], int | None]) -> Summary | None:
    try:
        summary = Summary.model_validate_json(target.read(summary_name(job.file)))
    except (OSError, ValidationError):
        return None
    there = not summary.shard.samples or size(job.file) == summary.shard.bytes
    return summary if there and summary.job == job.digest else None


def summary_name(file: str) -> str:
    """Name of the summary of a finished shard."""
    return f"{PACKING}/{PurePath(file).stem}.json"


def _open(index: int, sample: SourceSample, job: ShardJob) -> tuple[dict[str, bytes], list[Refusal], dict[str, Facts]]:
    """The members of a sample including label and meta, their problems, and their properties."""
    where = sample.source or sample.key
    try:
        members = sample.read(job.make)
        where = sample.files.get("meta.json", where)
        meta = read_meta(members.get("meta.json", b"{}"))
    except OSError as error:
        if fault := machine_fault(error, where):
            raise fault from None
        return {}, [Refusal(sample.key, str(error.filename or where), f"cannot be read: {error.strerror or error}")], {}
    except ValueError as error:
        return {}, [Refusal(sample.key, where, str(error))], {}
    meta = {**job.camera, **meta, "group": sample.group, "index": index, "source": sample.source}
    meta.pop("labels", None)  # only the labels of the plan are valid
    if sample.labels:
        meta["labels"] = dict(sample.labels)
    members["meta.json"] = json.dumps(meta, sort_keys=True).encode()
    if sample.label is not None:
        members["label.txt"] = str(sample.label).encode()
    facts: dict[str, Facts] = {}
    refused = []
    for member, data in members.items():
        try:
            facts[member] = inspect(member, data)
            if member == "label.txt":
                read_label(data, job.classes)
        except ValueError as error:  # noqa: PERF203
            refused.append(Refusal(sample.key, sample.files.get(member) or f"{where}: {member}", str(error)))
    return members, refused, facts
