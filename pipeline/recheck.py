"""Look again at the samples that a run passed over: what is wrong with each of them now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

from pipeline.check import Report
from pipeline.errors import UserError
from pipeline.members import inspect, read_label, read_meta
from pipeline.samples import Sample, read_range
from pipeline.scan import in_range, labels_of
from pipeline.shards import Dataset, Shard, load_dataset, local
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
        for one, fault in _again(folder, dataset, shards[file], list(group)):
            if fault is not None:
                found.faults.append(f"{file}: {one.key or f'sample {one.place}'}: {fault}")
            elif one.unpaired:
                found.notes.append(f"{file}: {one.key}: {one.cause}; nothing else is wrong")
            else:
                # What a joined data set lost is not in this one: the message names its folder.
                found.notes.append(f"{file}: {one.key or f'sample {one.place}'}: can be read now; then: {one.message}")
    return found


def _again(folder: Path, dataset: Dataset, shard: Shard, listed: list[Skipped]) -> Iterator[tuple[Skipped, str | None]]:
    """Each listed sample of a shard with what is wrong with it."""
    members, classes = frozenset(dataset.fields), dataset.counts()
    places = {one.place: one for one in listed}
    for raw in read_range(folder, [shard], 0, shard.samples, members, tolerant=True):
        if (one := places.pop(raw["__place__"], None)) is not None:
            yield one, raw.get("__lost__") or _fault(raw, classes)
    for one in places.values():
        yield one, f"its shard has no sample {one.place} now; it was packed again, or cut short"


def _fault(raw: Sample, classes: Mapping[str, int]) -> str | None:
    for member, data in raw.items():
        if not member.startswith("__"):
            try:
                inspect(member, data)
                if member == "label.txt":
                    in_range("label", read_label(data), classes)
                elif member == "meta.json":
                    list(labels_of(read_meta(data), classes))
            except ValueError as error:
                return f"{member}: {error}"
    return None
