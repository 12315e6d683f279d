"""Pack a plan into shards: every file opened and validated, every shard a job that can be repeated or resumed."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from pydantic import BaseModel, ValidationError
from rich.console import Console

from pipeline import splits as group_splits
from pipeline.errors import UserError
from pipeline.jobs import Job, cut
from pipeline.members import inspect, read_label, read_meta
from pipeline.parallel import each, tick
from pipeline.progress import Progress
from pipeline.recipes import Plan, Refusal, Sample
from pipeline.shards import MANIFEST, Dataset, Shard, remove_stale_parts, write_atomic, write_shard
from pipeline.splits import SPLITS

REFUSED = "refused.jsonl"
STATE = ".pack"
"""What packing needs to go on where it stopped: the plan's digest, and a summary of every finished shard."""


class Summary(BaseModel):
    """What is kept of a finished job."""

    job: str
    shard: Shard
    fields: dict[str, int]
    refused: list[Refusal]


def pack(
    plan: Plan,
    out: str | Path,
    *,
    fractions: Mapping[str, float] = group_splits.DEFAULT,
    seed: int = 0,
    shard_bytes: int = 64 << 20,
    min_shards: int = 4,
    workers: int = 1,
    max_refused: float = 0.05,
    overwrite: bool = False,
) -> Dataset:
    """Write the plan's samples as shards under `out`, and `dataset.json` last, when all is well.

    fractions: split -> share of the samples, for those that the recipe gives no split (see `splits.assign`).
    seed: of the split and of the order of samples. shard_bytes: target size of a shard.
    min_shards: in every split that has so many samples, so that ranks and workers can share them.
    workers: processes. max_refused: share of the samples that may be refused, in [0, 1].
    overwrite: throw away another packing that is in the folder; the same one is gone on with all the same.

    The same call again goes on where the last one stopped and gives the same bytes. Refused samples are listed in
    `refused.jsonl`. Raises UserError if too many are refused, if the folder holds another packing, if a split stays
    empty, or if the disk fails.
    """
    if shard_bytes < 1 or min_shards < 1:
        raise UserError(f"shards of {shard_bytes} bytes, at least {min_shards}: both must be 1 or more.")
    if not 0 <= max_refused <= 1:
        raise UserError(f"max_refused {max_refused}: a share of the samples from 0 to 1 is wanted, such as 0.05.")
    out = Path(out)
    _check_names(plan)
    _judge(plan, plan.refused, max_refused)  # a mistyped path shows now, not after hours of work
    jobs = cut(plan, str(out), group_splits.assign(plan.samples, fractions, seed), seed, shard_bytes, min_shards)
    try:
        _claim(out, plan, jobs, overwrite)
        remove_stale_parts(out)
        remove_stale_parts(out / STATE)
        summaries = _run(jobs, workers)
        refused = plan.refused + [refusal for summary in summaries for refusal in summary.refused]
        refused.sort(key=lambda refusal: (refusal.key, refusal.file))
        lines = "".join(f"{json.dumps(asdict(refusal))}\n" for refusal in refused)
        write_atomic(out / REFUSED, lines.encode())
        _judge(plan, refused, max_refused)
        dataset = _describe(plan, summaries, refused, plan.split_rule or group_splits.rule(fractions, seed))
        for summary in summaries:
            if not summary.shard.samples:
                (out / summary.shard.file).unlink(missing_ok=True)
        write_atomic(out / MANIFEST, dataset.model_dump_json(indent=2).encode() + b"\n")
    except OSError as error:
        raise UserError(
            f"{error.filename or out}: {error.strerror}. Run the same again: it goes on from here."
        ) from None
    _report(dataset, out)
    return dataset


def _check_names(plan: Plan) -> None:
    """UserError for names that `dataset.json` cannot hold: those of folders may be bytes that are no text."""
    for name in (plan.name, *chain.from_iterable(plan.classes.values())):
        try:
            name.encode()
        except UnicodeEncodeError:  # noqa: PERF203
            raise UserError(f"{name!a}: the name of a class or a data set must be UTF-8; rename it.") from None


def _claim(out: Path, plan: Plan, jobs: Sequence[Job], overwrite: bool) -> None:
    """Make the folder this plan's own, or raise UserError if it holds another's packing.

    One that never came to its end, of the same recipe and options, is taken over: somebody corrected its sources, and
    the shards that they do not touch are kept.
    """
    path = out / STATE / "plan.json"
    digest = hashlib.sha256(json.dumps([[job.file, job.digest] for job in jobs]).encode()).hexdigest()
    asked = json.loads(json.dumps({"recipe": plan.recipe, "options": plan.options}))
    found = _state(path)
    if found.get("digest") != digest:
        finished = (out / MANIFEST).exists()
        unfinished = not finished and found | asked == found
        if unfinished:
            _clear(out, {job.file for job in jobs})
        elif overwrite:
            _clear(out, ())
        elif found or finished or any(_shards_in(out)):
            raise UserError(
                f"{out}: the folder holds another packing (other sources, options or seed). "
                "Choose another folder, or pass `overwrite` to throw that one away."
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps({"digest": digest, **asked}, indent=2).encode())


def _state(path: Path) -> dict[str, object]:
    try:
        return read_meta(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        return {"digest": "unreadable"}


def _clear(out: Path, keep: Collection[str]) -> None:
    """Remove what packing writes, and nothing else; `dataset.json` first: from then on it is no data set.

    keep: shards that may stay, with their summaries.
    """
    shards = [path for path in _shards_in(out) if path.name not in keep]
    states = [path for path in (out / STATE).glob("*.json") if f"{path.stem}.tar" not in keep]
    for path in [out / MANIFEST, out / REFUSED, *shards, *states]:
        path.unlink(missing_ok=True)


def _shards_in(out: Path) -> Iterator[Path]:
    return (path for path in out.glob("*.tar") if re.fullmatch(r"(train|val|test)-\d{6}\.tar", path.name))


def _run(jobs: Sequence[Job], workers: int) -> list[Summary]:
    """Do the jobs that are not done yet; their summaries in the order of the jobs."""
    done = {job.file: summary for job in jobs if (summary := _finished(job))}
    pending = [job for job in jobs if job.file not in done]
    # Several machines may pack one folder at once: in orders of their own, they seldom do the same shard.
    random.Random().shuffle(pending)
    with Progress("packing", sum(len(job.samples) for job in pending)) as progress:
        for summary in each(pack_shard, pending, workers, progress.advance):
            done[summary.shard.file] = summary
    return [done[job.file] for job in jobs]


def _summary(job: Job) -> Path:
    """Where it is said, once a shard is done, what is in it."""
    return Path(job.folder) / STATE / f"{Path(job.file).stem}.json"


def _finished(job: Job) -> Summary | None:
    """The job's summary if it was done before and its tar is still there."""
    try:
        summary = Summary.model_validate_json(_summary(job).read_bytes())
        size = (Path(job.folder) / job.file).stat().st_size if summary.shard.samples else summary.shard.bytes
    except (OSError, ValidationError):
        return None
    return summary if summary.job == job.digest and summary.shard.bytes == size else None


def pack_shard(job: Job) -> Summary:
    """Read, validate and write one shard, then its summary. Runs in a worker process."""
    if summary := _finished(job):
        tick(len(job.samples))
        return summary
    refused: list[Refusal] = []
    fields: Counter[str] = Counter()

    def sound() -> Iterator[tuple[str, Mapping[str, bytes]]]:
        for index, sample in job.samples:
            members, faults = _open(index, sample, job)
            tick()
            refused.extend(faults)
            if not faults:
                fields.update(members.keys())
                yield sample.key, members

    shard = write_shard(Path(job.folder) / job.file, sound())
    summary = Summary(job=job.digest, shard=shard, fields=dict(sorted(fields.items())), refused=refused)
    write_atomic(_summary(job), summary.model_dump_json().encode())
    return summary


def _open(index: int, sample: Sample, job: Job) -> tuple[dict[str, bytes], list[Refusal]]:
    """A sample's members, label and meta included, and what is wrong with them."""
    where = sample.source or sample.key
    try:
        members = sample.read(job.make)
        where = sample.files.get("meta.json", where)
        meta = read_meta(members.get("meta.json", b"{}"))
    except OSError as error:
        return {}, [Refusal(sample.key, str(error.filename or where), f"cannot be read: {error.strerror or error}")]
    except ValueError as error:
        return {}, [Refusal(sample.key, where, str(error))]
    meta = {**job.camera, **meta, "group": sample.group, "index": index, "source": sample.source}
    meta.pop("labels", None)  # a person's own file may say anything
    if sample.labels:
        meta["labels"] = dict(sample.labels)
    members["meta.json"] = json.dumps(meta, sort_keys=True).encode()
    if sample.label is not None:
        members["label.txt"] = str(sample.label).encode()
    faults = {member: _fault(member, data, job.classes) for member, data in members.items()}
    return members, [Refusal(sample.key, sample.files.get(name, name), why) for name, why in faults.items() if why]


def _fault(member: str, data: bytes, classes: int | None) -> str | None:
    try:
        inspect(member, data)
        if member == "label.txt":
            read_label(data, classes)
    except ValueError as error:
        return str(error)
    return None


def _judge(plan: Plan, refused: Sequence[Refusal], ceiling: float) -> None:
    """Raise UserError if more is refused than the ceiling allows, or if nothing else is there."""
    total, count = len(plan.samples) + len(plan.refused), _count(refused)
    if count <= ceiling * total and plan.samples:
        return
    first = "".join(f"\n  {refusal.file}: {refusal.reason}" for refusal in refused[:5])
    more = f"\n  and {len(refused) - 5} more" if len(refused) > 5 else ""
    raise UserError(
        f"{count} of {total} samples are refused, more than {ceiling:.0%}:{first}{more}\n"
        f"Correct the sources or the options, or raise `max_refused` to go on without these; {REFUSED} then lists all."
    )


def _count(refused: Sequence[Refusal]) -> int:
    """How many samples: several files of one may be at fault."""
    return len({refusal.key or refusal.file for refusal in refused})


def _describe(plan: Plan, summaries: Sequence[Summary], refused: Sequence[Refusal], split_rule: str) -> Dataset:
    fields: Counter[str] = Counter()
    for summary in summaries:
        fields.update(summary.fields)
    shards = [summary.shard for summary in summaries if summary.shard.samples]
    by_split = {split: [shard for shard in shards if shard.file.startswith(f"{split}-")] for split in SPLITS}
    return Dataset(
        name=plan.name,
        recipe=plan.recipe,
        fields=dict(sorted(fields.items())),
        splits={split: found for split, found in by_split.items() if found},
        classes=plan.classes,
        masks=plan.masks,
        units=plan.units,
        split_rule=split_rule,
        licence=plan.licence,
        refused=_count(refused),
    )


def _report(dataset: Dataset, out: Path) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for split, shards in dataset.splits.items():
        size = sum(shard.bytes for shard in shards) / 1e6
        console.print(f"{split}: {dataset.samples(split)} samples in {len(shards)} shards, {size:.1f} MB")
    if dataset.refused:
        console.print(f"refused: {dataset.refused} samples, listed in {out / REFUSED}")
