"""Check a packed data set before hours are spent on it: every byte read, every fault one line, nothing changed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, groupby, islice
from operator import itemgetter
from pathlib import Path

from pipeline.balance import Balance
from pipeline.depths import Depths
from pipeline.members import SUFFIXES, can_hear, field_of
from pipeline.parallel import each
from pipeline.progress import Progress
from pipeline.scan import MOST_FAULTS, Job, Scan, scan
from pipeline.scratch import blob, scratch, unblob
from pipeline.shards import MANIFEST, Dataset, load_dataset, local

_WORTH_PROCESSES = 64 << 20  # bytes; below, starting processes takes longer than reading


@dataclass
class Report:
    """faults: what has to be mended, a line each: shard, key and member, what, cure. notes: what is worth knowing.

    facts: lines on what is in the data set.
    """

    facts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        verdict = f"{len(self.faults)} faults" if len(self.faults) != 1 else "1 fault"
        lines = [*self.facts, *(f"note: {note}" for note in self.notes), *(f"fault: {fault}" for fault in self.faults)]
        return "\n".join([*lines, verdict if self.faults else "no faults"])


def check(
    folder: str | Path, ranks: int = 1, workers: int = 2, quick: bool = False, processes: int | None = None
) -> Report:
    """Read all shards of a data set and hold them against `dataset.json` and against each other.

    ranks, workers: processes that will train and loader workers of each, to say if there are shards for all.
    quick: only the tars' structure, labels, meta and text; images and sound are not opened, hashes not computed.
    processes: that check; None chooses by the machine and the size of the data.

    Raises UserError if there is no readable `dataset.json`; all else that is wrong stands in the report.
    """
    dataset, folder = load_dataset(folder), local(folder)
    total = sum(map(dataset.samples, dataset.splits))
    held: Counter[str] = Counter()
    for member, count in dataset.fields.items():
        held[field_of(member)] += count
    expected = tuple(name for name, count in held.items() if count > total / 2 and name != "label")
    jobs = [
        Job(str(folder), split, shard, expected, dataset.counts(), tuple(dataset.masks), quick)
        for split, shards in dataset.splits.items()
        for shard in shards
    ]
    size = sum(job.shard.bytes for job in jobs)
    if processes is None:
        processes = min(os.cpu_count() or 1, 8) if size > _WORTH_PROCESSES else 1
    tally = Tally(dataset)
    with Progress("checking", total) as progress:
        for found in each(scan, jobs, processes, progress.advance):
            tally.add(found)
    notes = [*tally.notes(), *_unheard(dataset), *_readers(dataset, ranks, workers), *_strays(folder, dataset)]
    facts = [f"{dataset.name}: {total} samples in {len(jobs)} shards, {size / 1e6:.1f} MB; split: {dataset.split_rule}"]
    return Report(*([_plain(line) for line in lines] for lines in ([*facts, *tally.facts()], notes, tally.faults())))


class Tally:
    """What the shards say together. Keys and groups lie on disk, so any number of samples takes no memory."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.files = [shard.file for shard in chain.from_iterable(dataset.splits.values())]
        self.order = {file: number for number, file in enumerate(self.files)}
        self.within: dict[str, list[str]] = {}
        # shard: its place among the files.
        self.db = scratch("keys (key BLOB, shard INTEGER)", "groups (name BLOB, split TEXT, shard INTEGER)")
        self.samples = 0
        self.fields: Counter[str] = Counter()
        self.balance = Balance(dataset)
        self.sizes: dict[str, list[tuple[int, int]]] = {}
        self.depths = Depths()
        self.askew = 0
        self.lacking: dict[str, list[str]] = {}
        self.without: Counter[str] = Counter()

    def add(self, found: Scan) -> None:
        """Take in what was found in one shard."""
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
        self.without += found.without
        for name, keys in found.lacking.items():
            self.lacking.setdefault(name, []).extend(f"{file}: {key}" for key in keys)

    def faults(self) -> list[str]:
        """The shards' own in the order of the shards, then those between shards."""
        own = [line for file in sorted(self.within, key=self.order.__getitem__) for line in self.within[file]]
        across = [*islice(lines := chain(self._leaks(), self._repeats()), MOST_FAULTS)]
        left = sum(1 for _ in lines)
        more = [f"and {left} more faults between shards"] if left else []
        return [*own, *across, *more, *self._counts(), *self.depths.faults()]

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
                f"group {unblob(name)} is in {self._both(shard, where)}: {' and '.join(sorted((split, other)))} share "
                "what must be apart; pack again with a group or split that keeps it whole"
            )

    def _repeats(self) -> Iterator[str]:
        """Keys that several samples have; of those inside one shard the first."""
        repeated = "SELECT key FROM keys GROUP BY key HAVING COUNT(*) > 1"
        rows = self.db.execute(
            f"SELECT key, shard, COUNT(*) FROM keys WHERE key IN ({repeated}) GROUP BY key, shard ORDER BY key, shard"
        )
        told: set[int] = set()
        for key, found in groupby(rows, key=itemgetter(0)):
            first = None
            for _, shard, count in found:
                if first is not None:
                    yield f"key {unblob(key)} is in {self._both(first, shard)}; keys must differ; pack the data again"
                if count > 1 and shard not in told:
                    told.add(shard)
                    file = self.files[shard]
                    yield f"key {unblob(key)} stands twice in {file}; keys must differ; pack the data again"
                first = shard if first is None else first

    def _both(self, *shards: int) -> str:
        return " and ".join(sorted(self.files[shard] for shard in shards))

    def _counts(self) -> Iterator[str]:
        """Fields whose number is not the recorded one: something was lost or added after packing."""
        for member in sorted({*self.fields, *self.dataset.fields}):
            said, there = self.dataset.fields.get(member, 0), self.fields[member]
            if said == there:
                continue
            yield f"{MANIFEST}: {member}: in {there} samples, recorded are {said}; run the same `wcord pack` again"
            for where in sorted(self.lacking.get(field_of(member), ()))[:MOST_FAULTS]:
                yield f"{where}.{member}: missing, while most samples have it; run the same `wcord pack` again"

    def facts(self) -> list[str]:
        """Members with counts and sizes, classes and depths, a line each."""
        lines = []
        for member, count in sorted(self.fields.items()):
            sizes = sorted(self.sizes.get(member, ()), key=lambda size: size[0] * size[1])
            low, high = (f"{width} x {height}" for width, height in (sizes[0], sizes[-1])) if sizes else ("", "")
            size = f", {low}" + (f" to {high}" if high != low else "") if sizes else ""
            depth = f", {self.depths.fact()}" if member.startswith("depth.") and self.depths.medians else ""
            lines.append(f"  {member}: in {count} of {self.samples} samples{size}{depth}")
        return [*lines, *self.balance.facts()]

    def notes(self) -> Iterator[str]:
        """What is no fault but worth knowing, a line each."""
        recorded = self.dataset.fields
        for name, keys in sorted(self.lacking.items()):
            kinds = sorted(member for member in recorded if field_of(member) == name)
            if all(recorded[member] == self.fields[member] for member in kinds):
                count = f"{self.without[name]} of {self.samples}"
                yield f"{count} samples have no {' or '.join(kinds)}, the first {min(keys)}"
        yield from self.depths.notes()
        if self.askew:
            yield (
                f"in {self.askew} samples the images differ in aspect ratio, so one crop shows different things; "
                "align them before packing"
            )
        yield from self.balance.notes()


def _plain(line: str) -> str:
    """One line for a terminal: names in a tar may hold line ends, control codes and bytes that are no text."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def _unheard(dataset: Dataset) -> Iterator[str]:
    """Sound of which no more than the header is read."""
    if not can_hear() and any(member.endswith(SUFFIXES["audio"]) for member in dataset.fields):
        yield "sound is not decoded, so not all damage to it is seen: pip install 'wcord[audio]'"


def _readers(dataset: Dataset, ranks: int, workers: int) -> Iterator[str]:
    """Splits with fewer shards than readers."""
    for split, shards in dataset.splits.items():
        if len(shards) < ranks * workers:
            yield (
                f"{split} has {len(shards)} shards for {ranks * workers} readers ({ranks} ranks x {workers} workers): "
                "it works, but several then read one shard; pack with more or smaller shards for speed"
            )


def _strays(folder: Path, dataset: Dataset) -> Iterator[str]:
    """Shards that lie in the folder and are not in `dataset.json`: nothing would read them."""
    known = {shard.file for shards in dataset.splits.values() for shard in shards}
    strays = sorted(path.name for path in folder.glob("*.tar") if path.name.count(".") == 1 and path.name not in known)
    if strays:
        yield f"{len(strays)} tars are not in {MANIFEST} and will not be read, the first {strays[0]}"
