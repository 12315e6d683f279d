"""Checks a dataset before training: reads every byte, reports one line per problem, and changes nothing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, groupby, islice
from operator import itemgetter
from pathlib import Path

from pipeline.common.console import one_line
from pipeline.common.process_pool import map_jobs
from pipeline.common.progress import Progress
from pipeline.common.spill import blob, scratch, unblob
from pipeline.data.dataset import MANIFEST, Dataset
from pipeline.data.manifest import load_dataset, local
from pipeline.data.member_formats import SUFFIXES, can_hear, field_of
from pipeline.packing.class_balance import Balance
from pipeline.packing.depth_units import Depths
from pipeline.packing.duplicates import Duplicates
from pipeline.packing.scan import MOST_FAULTS, Scan, ScanJob, scan

_WORTH_PROCESSES = 64 << 20  # bytes; below this size, starting processes takes longer than reading


@dataclass
class Report:
    """The result of a check.

    Attributes:
        facts: The content of the dataset, one line each.
        notes: Observations that need not be errors, one line each.
        faults: Errors that must be fixed, one line each: shard, key, member, problem and fix.
    """

    facts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        verdict = f"{len(self.faults)} faults" if len(self.faults) != 1 else "1 fault"
        lines = [*self.facts, *(f"note: {note}" for note in self.notes), *(f"fault: {fault}" for fault in self.faults)]
        return "\n".join([*lines, verdict if self.faults else "no faults"])


def check(
    folder: str | Path,
    ranks: int = 1,
    workers: int = 2,
    quick: bool = False,
    processes: int | None = None,
    near_duplicates: bool = False,
) -> Report:
    """Read all shards of a dataset and compare them with `dataset.json` and with each other.

    Args:
        folder: The dataset.
        ranks: Number of training processes, to check whether there are enough shards.
        workers: Number of loader workers of each process.
        quick: Only check the structure of the tars, labels, meta and text. Images and audio are not decoded, and hashes
            are not computed.
        processes: Number of checking processes; None chooses it by the machine and the size of the data.
        near_duplicates: Also find near-identical photos in several splits.

    Raises:
        UserError: There is no readable `dataset.json`. The report lists all other problems.
    """
    dataset, folder = load_dataset(folder, tolerant=True), local(folder)
    total = sum(map(dataset.samples, dataset.splits))
    held: Counter[str] = Counter()
    for member, count in dataset.fields.items():
        held[field_of(member)] += count
    expected = tuple(name for name, count in held.items() if count > total / 2 and name != "label")
    jobs = [
        ScanJob(
            dataset.layout(folder, split),
            split,
            shard,
            expected,
            dataset.counts(),
            tuple(dataset.masks),
            quick,
            {label: foreign for label in dataset.classes if (foreign := dataset.foreign_label(label))},
            near_duplicates,
        )
        for split, shards in dataset.splits.items()
        for shard in shards
    ]
    files = {job.shard.file: job.shard.bytes for job in jobs}
    size = sum(files.values())
    if processes is None:
        processes = min(os.cpu_count() or 1, 8) if size > _WORTH_PROCESSES else 1
    tally = Findings(dataset)
    with Progress("checking", total) as progress:
        for found in map_jobs(scan, jobs, processes, progress.advance):
            tally.add(found)
    notes = [*tally.notes(), *_unheard(dataset), *_readers(dataset, ranks, workers), *_strays(folder, dataset)]
    facts = [
        f"{dataset.name}: {total} samples in {len(files)} shards, {size / 1e6:.1f} MB; split: {dataset.split_rule}"
    ]
    return Report(*([one_line(line) for line in lines] for lines in ([*facts, *tally.facts()], notes, tally.faults())))


class Findings:
    """Combines the scans of all shards. Keys and groups are on disk, so memory does not grow with the samples.

    Args:
        dataset: The dataset.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.files = [shard.file for shard in chain.from_iterable(dataset.splits.values())]
        self.order = {file: number for number, file in enumerate(self.files)}
        self.within: dict[str, list[str]] = {}
        # shard: its index in self.files.
        self.db = scratch("keys (key BLOB, shard INTEGER)", "groups (name BLOB, split TEXT, shard INTEGER)")
        self.samples = 0
        self.fields: Counter[str] = Counter()
        self.balance = Balance(dataset)
        self.sizes: dict[str, list[tuple[int, int]]] = {}
        self.depths = Depths()
        self.askew = self.doubtful = 0
        self.doubt = ""
        self.duplicates = Duplicates()
        self.lacking: dict[str, list[str]] = {}
        self.without: Counter[str] = Counter()

    def add(self, found: Scan) -> None:
        """Add the scan of one shard."""
        file, split = found.job.shard.file, found.job.split
        self.within[file] = found.faults
        self.db.executemany("INSERT INTO keys VALUES (?, ?)", ((blob(key), self.order[file]) for key in found.keys))
        groups = ((blob(group), split, self.order[file]) for group in found.groups)
        self.db.executemany("INSERT INTO groups VALUES (?, ?, ?)", groups)
        self.samples += len(found.keys)
        self.fields += found.fields
        self.balance.add(found)
        for member, sizes in found.sizes.items():
            self.sizes.setdefault(member, []).extend(sizes)
        self.depths.add(found)
        self.askew += found.askew
        self.doubtful += found.doubtful
        self.doubt = self.doubt or (found.doubt and f"{file}: {found.doubt}")
        self.duplicates.add(split, file, found.hashes)
        self.without += found.without
        for name, keys in found.lacking.items():
            self.lacking.setdefault(name, []).extend(f"{file}: {key}" for key in keys)

    def faults(self) -> list[str]:
        """Problems within shards, in the order of the shards, followed by problems between shards."""
        own = [line for file in sorted(self.within, key=self.order.__getitem__) for line in self.within[file]]
        across = [*islice(lines := chain(self._leaks(), self._repeats()), MOST_FAULTS)]
        left = sum(1 for _ in lines)
        more = [f"and {left} more problems between shards"] if left else []
        leaks = [line for is_fault, line in self.shared if is_fault]
        return [*own, *across, *more, *leaks, *self._counts(), *self.depths.faults()]

    @cached_property
    def shared(self) -> list[tuple[bool, str]]:
        """Content that several splits share: whether it is an error, and a line that describes it."""
        return list(self.duplicates.lines({split: self.balance.samples[split] for split in self.dataset.splits}))

    def _leaks(self) -> Iterator[str]:
        """Groups that are in several splits."""
        leaking = "SELECT name FROM groups GROUP BY name HAVING MIN(split) < MAX(split)"
        rows = self.db.execute(
            f"SELECT name, split, MIN(shard) AS first FROM groups WHERE name IN ({leaking}) GROUP BY name, split "
            "ORDER BY name, first"
        )
        for name, found in groupby(rows, key=itemgetter(0)):
            (_, split, shard), (_, other, where) = islice(found, 2)
            yield (
                f"group {unblob(name)} is in {self._both(shard, where)}: {' and '.join(sorted((split, other)))} must "
                "not share a group; pack again with other groups or splits"
            )

    def _repeats(self) -> Iterator[str]:
        """Duplicate keys. Within one shard, only the first one is reported."""
        repeated = "SELECT key FROM keys GROUP BY key HAVING COUNT(*) > 1"
        rows = self.db.execute(
            f"SELECT key, shard, COUNT(*) FROM keys WHERE key IN ({repeated}) GROUP BY key, shard ORDER BY key, shard"
        )
        reported: set[int] = set()
        for key, found in groupby(rows, key=itemgetter(0)):
            first = None
            for _, shard, count in found:
                if first is not None:
                    both = self._both(first, shard)
                    yield f"key {unblob(key)} is in {both}; keys must be unique; pack the data again"
                if count > 1 and shard not in reported:
                    reported.add(shard)
                    file = self.files[shard]
                    yield f"key {unblob(key)} occurs twice in {file}; keys must be unique; pack the data again"
                first = shard if first is None else first

    def _both(self, *shards: int) -> str:
        return " and ".join(sorted(self.files[shard] for shard in shards))

    def _counts(self) -> Iterator[str]:
        """Fields whose count differs from the recorded one, i.e. samples were lost or added after packing."""
        for member in sorted({*self.fields, *self.dataset.fields}):
            recorded, found = self.dataset.fields.get(member, 0), self.fields[member]
            if recorded == found or (recorded and not self.dataset.counted):
                continue
            yield f"{MANIFEST}: {member}: in {found} samples, recorded: {recorded}; run the same `wcord pack` again"
            for where in sorted(self.lacking.get(field_of(member), ()))[:MOST_FAULTS]:
                yield f"{where}.{member}: missing, but most samples have it; run the same `wcord pack` again"

    def facts(self) -> list[str]:
        """Members (with their extensions in foreign shards), counts, sizes, classes and depths, one line each."""
        lines = []
        for member, count in sorted(self.fields.items()):
            sizes = sorted(self.sizes.get(member, ()), key=lambda size: size[0] * size[1])
            low, high = (f"{width} x {height}" for width, height in (sizes[0], sizes[-1])) if sizes else ("", "")
            size = f", {low}" + (f" to {high}" if high != low else "") if sizes else ""
            depth = f", {self.depths.fact()}" if member.startswith("depth.") and self.depths.medians else ""
            own = " or ".join(name for name, known in self.dataset.names.items() if known == member != name)
            stored = f" (stored as {own})" if own else ""
            lines.append(f"  {member}{stored}: in {count} of {self.samples} samples{size}{depth}")
        return [*lines, *self.balance.facts()]

    def notes(self) -> Iterator[str]:
        """Observations that need not be errors, one line each."""
        recorded = self.dataset.fields
        for name, keys in sorted(self.lacking.items()):
            kinds = sorted(member for member in recorded if field_of(member) == name)
            if not self.dataset.counted or all(recorded[member] == self.fields[member] for member in kinds):
                count = f"{self.without[name]} of {self.samples}"
                yield f"{count} samples have no {' or '.join(kinds)}, the first one is {min(keys)}"
        yield from self.depths.notes()
        if self.askew:
            yield (
                f"in {self.askew} samples the images have different aspect ratios, so the same crop shows different "
                "parts of the scene; align them before packing"
            )
        if self.doubtful:
            yield f"{self.doubtful} samples have a photo that EXIF rotates: {self.doubt}"
        yield from (line for is_fault, line in self.shared if not is_fault)
        yield from self.balance.notes()


def _unheard(dataset: Dataset) -> Iterator[str]:
    """Audio members of which only the header is checked."""
    if not can_hear() and any(member.endswith(SUFFIXES["audio"]) for member in dataset.fields):
        yield "audio is not decoded, so some damage goes undetected; to decode it: pip install soundfile"


def _readers(dataset: Dataset, ranks: int, workers: int) -> Iterator[str]:
    """Splits with fewer shards than readers."""
    for split, shards in dataset.splits.items():
        if len(shards) < ranks * workers:
            yield (
                f"{split} has {len(shards)} shards for {ranks * workers} readers ({ranks} ranks x {workers} workers): "
                "several readers then share a shard, which is slower; pack with more or smaller shards"
            )


def _strays(folder: Path, dataset: Dataset) -> Iterator[str]:
    """Shards in the folder that `dataset.json` does not list and that would not be read."""
    known = {shard.file for shards in dataset.splits.values() for shard in shards}
    strays = sorted(path.name for path in folder.glob("*.tar") if path.name.count(".") == 1 and path.name not in known)
    if strays:
        yield f"{len(strays)} tars are not listed in {MANIFEST} and will not be read; the first one is {strays[0]}"
