"""Look again at the samples that a run passed over: what is wrong with each of them now."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from pipeline.check import Report
from pipeline.errors import UserError
from pipeline.members import inspect
from pipeline.samples import Sample, read_range
from pipeline.shards import Shard, load_dataset, local
from pipeline.skipped import Skipped, counts, in_words, read_skipped


def recheck(folder: str | Path, listed: str | Path) -> Report:
    """Read the listed samples of a data set, and no others; a fault for each that is still faulty.

    listed: the `skipped.jsonl` of a run. Raises UserError if there is none, or it is of another data set.
    """
    listed = Path(listed)
    if not listed.is_file():
        raise UserError(f"{listed}: not found; a run that skipped something has it as skipped.jsonl.")
    dataset, folder = load_dataset(folder), local(folder)
    shards = {shard.file: shard for split in dataset.splits.values() for shard in split}
    skipped = sorted(read_skipped(listed), key=lambda s: (s.shard, s.place))
    if strangers := sorted({s.shard for s in skipped} - shards.keys()):
        raise UserError(f"{listed}: lists {strangers[0]}, which {folder} does not have: it is of another data set.")
    found = Report(facts=[f"{len(skipped)} samples listed ({in_words(counts(skipped))})"])
    for file, group in groupby(skipped, key=lambda s: s.shard):
        for one, fault in _again(folder, shards[file], list(group)):
            if fault is not None:
                found.faults.append(f"{file}: {one.key or f'sample {one.place}'}: {fault}")
            elif one.unpaired:
                found.notes.append(f"{file}: {one.key}: {one.cause}; nothing else is wrong")
            else:
                found.notes.append(f"{file}: {one.key or f'sample {one.place}'}: can be read now")
    return found


def _again(folder: Path, shard: Shard, listed: list[Skipped]) -> Iterator[tuple[Skipped, str | None]]:
    """Each listed sample of a shard with what is wrong with it."""
    members = frozenset(load_dataset(folder).fields)
    places = {one.place: one for one in listed}
    for raw in read_range(folder, [shard], 0, shard.samples, members, tolerant=True):
        if (one := places.get(raw["__place__"])) is not None:
            yield one, raw.get("__lost__") or _fault(raw)


def _fault(raw: Sample) -> str | None:
    for member, data in raw.items():
        if not member.startswith("__"):
            try:
                inspect(member, data)
            except ValueError as error:
                return f"{member}: {error}"
    return None
