"""Checks the samples that a run skipped, and reports what is still wrong with each of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.data.dataset import Dataset, Shard
from pipeline.data.manifest import load_dataset, local
from pipeline.data.member_formats import inspect, read_label, read_meta
from pipeline.data.shard_reader import Sample, read_range
from pipeline.data.skipped import Skipped, counts, in_words, read_skipped
from pipeline.packing.check import Report
from pipeline.packing.scan import in_range, labels_of


def recheck(folder: str | Path, listed: str | Path) -> Report:
    """Check only the listed samples of a dataset, and report those that are still faulty.

    Args:
        folder: The dataset.
        listed: The `skipped.jsonl` of a run.

    Raises:
        UserError: The list does not exist or belongs to another dataset.
    """
    listed = Path(listed)
    if not listed.is_file():
        raise UserError(f"{listed}: not found; runs write it as skipped.jsonl if they skip samples.")
    dataset, folder = load_dataset(folder, tolerant=True), local(folder)
    # The list contains training samples. If a shard is in several splits, places are counted within the first one.
    shards = {shard.file: (split, shard) for split, own in reversed(dataset.splits.items()) for shard in own}
    skipped = sorted(read_skipped(listed), key=lambda s: (s.shard, s.place))
    if strangers := sorted({s.shard for s in skipped} - shards.keys()):
        raise UserError(
            f"{listed}: this list refers to {strangers[0]}, which is not in {folder}; the list was written for another "
            "dataset."
        )
    found = Report(facts=[f"{len(skipped)} samples listed ({in_words(counts(skipped))})"])
    for file, group in groupby(skipped, key=lambda s: s.shard):
        for one, fault in _again(folder, dataset, *shards[file], list(group)):
            if fault is not None:
                found.faults.append(f"{file}: {one.key or f'sample {one.place}'}: {fault}")
            elif one.unpaired:
                found.notes.append(f"{file}: {one.key}: {one.cause}; nothing else is wrong")
            else:
                # Problems of a joined dataset are not in this one; the message contains its folder.
                found.notes.append(f"{file}: {one.key or f'sample {one.place}'}: readable now; before: {one.message}")
    return found


def _again(
    folder: Path, dataset: Dataset, split: str, shard: Shard, listed: list[Skipped]
) -> Iterator[tuple[Skipped, str | None]]:
    """Each listed sample of a shard with its problem, or None."""
    members, classes = frozenset(dataset.fields), dataset.counts()
    places = {one.place: one for one in listed}
    for raw in read_range(dataset.layout(folder, split), [shard], 0, shard.samples, members, tolerant=True):
        if (one := places.pop(raw["__place__"], None)) is not None:
            yield one, raw.get("__lost__") or _fault(raw, classes)
    for one in places.values():
        yield one, f"its shard no longer has a sample {one.place}; it was packed again or truncated"


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
