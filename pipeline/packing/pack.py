"""Packs a plan into shards and validates every file. Each shard is a job that can be repeated or resumed."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.owner import owned
from pipeline.common.process_pool import map_jobs
from pipeline.common.progress import Progress
from pipeline.data.dataset import MANIFEST, Dataset
from pipeline.data.foreign import PACKING
from pipeline.data.member_formats import read_meta
from pipeline.packing import splits as group_splits
from pipeline.packing.duplicates import Duplicates, decode_hashes
from pipeline.packing.recipes.plan import Plan, Refusal
from pipeline.packing.shard_jobs import cut
from pipeline.packing.splits import SPLITS
from pipeline.packing.target import target_of
from pipeline.packing.write_job import Summary, finished, summary_name, write_job

log = logging.getLogger(__name__)

REFUSED = "refused.jsonl"
PLAN = f"{PACKING}/plan.json"
"""The state for resuming: the digest of the plan and, in the same folder, a summary of every finished shard."""


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
    """Write the samples of a plan as shards, and finally `dataset.json`.

    Repeating the same call resumes after an interruption and writes the same bytes. Rejected samples are listed in
    `refused.jsonl`.

    Args:
        plan: The plan that a recipe made.
        out: Folder of the dataset, or URL in object storage, such as `s3://bucket/set`.
        fractions: Split -> fraction of the samples, for samples without a split in the plan (see `splits.assign`).
        seed: Random seed for the split and the order of the samples.
        shard_bytes: Target size of a shard in bytes.
        min_shards: Minimum number of shards per split (if it has enough samples), which ranks and workers can share.
        workers: Number of processes.
        max_refused: Maximum fraction of rejected samples, in [0, 1].
        overwrite: Delete differently packed data in the folder. The same packing is always resumed.

    Returns:
        The content of `dataset.json`.

    Raises:
        UserError: Too many samples are rejected, the folder contains differently packed data, a split is empty, or the
            disk fails.
    """
    packing = Packing(
        plan,
        str(out),
        fractions=fractions,
        seed=seed,
        shard_bytes=shard_bytes,
        min_shards=min_shards,
        max_refused=max_refused,
    )
    with packing.claimed(overwrite):
        packing.write(workers)
        return packing.finish()


class MissingShardsError(UserError):
    """Raised if shards of other parts are not finished yet."""


class Packing:
    """A plan that is being packed. Several machines can each write a part of the shards; the last one finishes.

    The arguments are those of `pack`.

    Raises:
        UserError: A split is empty, or too many sources were rejected.
    """

    def __init__(
        self,
        plan: Plan,
        out: str,
        *,
        fractions: Mapping[str, float],
        seed: int,
        shard_bytes: int = 64 << 20,
        min_shards: int = 4,
        max_refused: float = 0.05,
    ) -> None:
        if shard_bytes < 1 or min_shards < 1:
            raise UserError(f"shard_bytes {shard_bytes}, min_shards {min_shards}: both must be at least 1.")
        if not 0 <= max_refused <= 1:
            raise UserError(f"max_refused {max_refused}: expected a fraction from 0 to 1, such as 0.05.")
        self.plan, self.out, self.max_refused = plan, out, max_refused
        self.target = target_of(out)
        self.split_rule = plan.split_rule or group_splits.rule(fractions, seed)
        _check_names(plan)
        _judge(plan, plan.refused, max_refused)  # report a mistyped path now, not after hours of work
        self.fractions = {} if plan.split_rule else fractions
        places, self.groups = group_splits.assign(plan.samples, fractions, seed)
        self.jobs = cut(plan, out, places, seed, shard_bytes, min_shards)
        self.done: dict[str, Summary] = {}
        self.digest = hashlib.sha256(json.dumps([[job.file, job.digest] for job in self.jobs]).encode()).hexdigest()

    @contextmanager
    def claimed(self, overwrite: bool = False) -> Iterator[None]:
        """Lock the folder while shards are written. Processes that write the same shards may share it.

        Args:
            overwrite: Delete differently packed data in the folder.

        Raises:
            UserError: The folder contains differently packed data, or another process is writing such data.
        """
        folder = getattr(self.target, "path", None)  # stores do not support locks
        with owned(folder, self.digest) if folder else nullcontext():
            with _user_errors(self.out):
                self._claim(overwrite)
            yield

    def write(self, workers: int, part: tuple[int, int] = (1, 1)) -> None:
        """Write the missing shards.

        Args:
            workers: Number of processes.
            part: `(k, n)`: write only part k of n, counted from 1.
        """
        number, parts = part
        jobs = self.jobs[number - 1 :: parts]
        with _user_errors(self.out):
            self.target.tidy()
            self.done = finished(jobs, self.target)
            pending = [job for job in jobs if job.file not in self.done]
            # Several machines may pack one folder at once. With random orders, they rarely write the same shard.
            random.Random().shuffle(pending)
            with Progress("packing", sum(len(job.samples) for job in pending)) as progress:
                for summary in map_jobs(write_job, pending, workers, progress.advance):
                    self.done[summary.shard.file] = summary

    def finish(self) -> Dataset:
        """Write `refused.jsonl` and `dataset.json`.

        Raises:
            MissingShardsError: Other parts are not finished yet.
            UserError: Too many samples are rejected, or the disk fails.
        """
        with _user_errors(self.out):
            # Another process that shared the lock may have released it, and a different packing may have begun.
            if self._state().get("digest") != self.digest:
                raise UserError(f"{self.out}: another process is packing a different dataset. Choose another folder.")
            self.done |= finished([job for job in self.jobs if job.file not in self.done], self.target)
            if missing := len(self.jobs) - len(self.done):
                raise MissingShardsError(
                    f"{self.out}: {missing} of {len(self.jobs)} shards are missing. The part that finishes last "
                    f"writes {MANIFEST}. To write all missing shards, run the same command without --part."
                )
            summaries = [self.done[job.file] for job in self.jobs]
            refused = self.plan.refused + [refusal for summary in summaries for refusal in summary.refused]
            refused.sort(key=lambda refusal: (refusal.key, refusal.file))
            lines = "".join(f"{json.dumps(asdict(refusal))}\n" for refusal in refused)
            self.target.write(REFUSED, lines.encode())
            _judge(self.plan, refused, self.max_refused)
            dataset = self._describe(summaries, refused)
            for summary in summaries:
                if not summary.shard.samples:
                    self.target.remove(summary.shard.file)
            self.target.write(MANIFEST, dataset.model_dump_json(indent=2).encode() + b"\n")
        _report(dataset, self.out, sum(summary.excluded for summary in summaries))
        self._report_split(dataset)
        _warn(dataset, summaries)
        return dataset

    def _describe(self, summaries: Sequence[Summary], refused: Sequence[Refusal]) -> Dataset:
        dataset = _describe(self.plan, summaries, refused, self.split_rule)
        if far := group_splits.deviations(_samples(dataset), self.fractions):
            return dataset.model_copy(update={"split_rule": f"{self.split_rule}; {', '.join(far)}"})
        return dataset

    def _report_split(self, dataset: Dataset) -> None:
        """Log the number of groups, unless every sample is its own group, and how far the split is from the request."""
        samples = _samples(dataset)
        if sum(self.groups.values()) < len(self.plan.samples):
            log.info(group_splits.outcome(self.groups, samples, self.fractions))
        for deviation in group_splits.deviations(samples, self.fractions):
            log.warning(f"{deviation}, since groups are kept whole and classes balanced. Smaller groups match better.")

    def _claim(self, overwrite: bool) -> None:
        """Claim the folder for this plan, or raise UserError if it contains differently packed data.

        An unfinished packing with the same recipe and options is continued: the user has corrected its sources. Shards
        that the corrections do not affect are kept.
        """
        settings = json.loads(json.dumps({"recipe": self.plan.recipe, "options": self.plan.options}))
        there = self.target.sizes()  # read before the plan, since another part may be writing its first shard
        found = self._state()
        if found.get("digest") == self.digest:
            return
        unfinished = MANIFEST not in there and found | settings == found
        if unfinished:
            self._clear(there, {job.file for job in self.jobs})
        elif overwrite:
            self._clear(there, ())
        elif found or MANIFEST in there or any(map(_is_shard, there)):
            raise UserError(
                f"{self.out}: the folder contains data packed from other sources or with other options or seed. "
                "Choose another folder, or pass `overwrite` to delete this data."
            )
        self.target.write(PLAN, json.dumps({"digest": self.digest, **settings}, indent=2).encode())

    def _state(self) -> dict[str, object]:
        try:
            return read_meta(self.target.read(PLAN))
        except FileNotFoundError:
            return {}
        except ValueError:
            return {"digest": "unreadable"}

    def _clear(self, there: Collection[str], keep: Collection[str]) -> None:
        """Remove only what packing writes; `dataset.json` first, since the rest is not a dataset without it.

        Args:
            there: Names of the files that exist.
            keep: Shards to keep, with their summaries.
        """
        kept = {*keep, *map(summary_name, keep)}
        old = [name for name in there if _is_shard(name) or re.fullmatch(rf"{re.escape(PACKING)}/[^/]*\.json", name)]
        for name in [MANIFEST, REFUSED, *(name for name in old if name not in kept)]:
            self.target.remove(name)


@contextmanager
def _user_errors(out: str) -> Iterator[None]:
    """Turn errors of a disk or of object storage into messages."""
    try:
        yield
    except OSError as error:
        reason = f"{error.filename or out}: {error.strerror}" if error.strerror else f"{out}: {error}"
        raise UserError(f"{reason}. Run the same command again to resume.") from None


def _check_names(plan: Plan) -> None:
    """Check that names can be stored in `dataset.json`: names of folders may be invalid UTF-8."""
    for name in (plan.name, *chain.from_iterable(plan.classes.values())):
        try:
            name.encode()
        except UnicodeEncodeError:  # noqa: PERF203
            raise UserError(f"{name!a}: names of classes and datasets must be valid UTF-8; rename it.") from None


def _is_shard(name: str) -> bool:
    return re.fullmatch(r"(train|val|test)-\d{6}\.tar", name) is not None


def _judge(plan: Plan, refused: Sequence[Refusal], ceiling: float) -> None:
    """Raise UserError if too many samples are rejected, or none are left."""
    total, count = len(plan.samples) + len(plan.refused), _count(refused)
    if count <= ceiling * total and plan.samples:
        return
    if 1 < count == total and len({refusal.reason for refusal in refused}) == 1:
        same = f"e.g. {refused[0].file}: {refused[0].reason}"
        raise UserError(
            f"all {total} samples were rejected for the same reason, {same}. Correct the sources or options."
        )
    first = "".join(f"\n  {refusal.file}: {refusal.reason}" for refusal in refused[:5])
    more = f"\n  and {len(refused) - 5} more" if len(refused) > 5 else ""
    raise UserError(
        f"{count} of {total} samples were rejected, more than {ceiling:.0%}:{first}{more}\n"
        f"Correct the sources or the options, or raise --max-refused to skip them; {REFUSED} then lists all of them."
    )


def _count(refused: Sequence[Refusal]) -> int:
    """Number of rejected samples; one sample may have several faulty files."""
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
        source=plan.source,
        refused=_count(refused),
    )


def _samples(dataset: Dataset) -> dict[str, int]:
    return {split: dataset.samples(split) for split in dataset.splits}


def _report(dataset: Dataset, out: str, excluded: int) -> None:
    for split, shards in dataset.splits.items():
        size = sum(shard.bytes for shard in shards) / 1e6
        log.info(f"{split}: {dataset.samples(split)} samples in {len(shards)} shards, {size:.1f} MB")
    if dataset.refused:
        log.info(f"rejected: {dataset.refused} samples, listed in {out}/{REFUSED}")
    if excluded:
        log.info(f"excluded by the filter: {excluded} samples")


def _warn(dataset: Dataset, summaries: Sequence[Summary]) -> None:
    """Warn about valid data that harms training: equal members in several splits, and mismatched images."""
    duplicates = Duplicates()
    for summary in summaries:
        split = summary.shard.file.partition("-")[0]
        for name, text in summary.contents.items():
            duplicates.add(split, summary.shard.file, ((name, number, "") for number in decode_hashes(text)))
    for _, line in duplicates.lines(_samples(dataset)):
        log.warning(f"{line}. Run `wcord check` to list the samples.")
    certain, doubtful = (sum(counts) for counts in zip(*((s.mismatched, s.doubtful) for s in summaries), strict=True))
    first = next((summary.mismatch for summary in summaries if summary.mismatch), "")
    if certain:
        log.warning(f"in {certain} samples, the images do not match; the first one: {first}")
    elif doubtful:
        log.warning(f"{doubtful} samples have a photo that EXIF rotates; the first one: {first}")
