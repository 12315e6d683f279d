"""Mismatched pairs: a copy of a packed dataset in which some training samples have the teacher's input of another."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from filelock import FileLock

from modalities.base import Modality
from pipeline.common.errors import UserError
from pipeline.common.files import write_atomic
from pipeline.common.hashing import digest
from pipeline.config.settings import Config
from pipeline.data.dataset import MANIFEST, Dataset, Shard
from pipeline.data.foreign import is_foreign
from pipeline.data.manifest import load_dataset, write_shard
from pipeline.data.remote import is_remote
from pipeline.data.shard_reader import Sample, read_shard

log = logging.getLogger(__name__)

BROKEN = "broken_pairs.json"
"""The keys of the mismatched samples, in the folder of the copy."""


@dataclass(frozen=True)
class BrokenCopy:
    """A copy of a dataset, which may not be written yet.

    Attributes:
        source: Folder of the dataset.
        folder: Folder of the copy.
        members: The members that only the teacher reads.
        share: Fraction of the training samples to mismatch, in (0, 1].
    """

    source: Path
    folder: Path
    members: frozenset[str]
    share: float


def plan_copy(
    config: Config, student: Iterable[Modality], teacher: Iterable[Modality], share: float, out: Path
) -> BrokenCopy:
    """Plan the copy for a student. Copies of the same data with the same teacher's members are the same.

    Args:
        config: Config of the student with the correct pairs.
        student: Modalities of the student.
        teacher: Modalities of the teacher.
        share: Fraction of the training samples to mismatch, in (0, 1].
        out: Folder of the copies.

    Raises:
        UserError: The data are not a local packed dataset, or the teacher reads no members of its own.
    """
    shards = config.data.shards
    cure = "Pack the data with `wcord pack`, or remove `noise`."
    if not isinstance(shards, str) or config.data.join or is_remote(shards) or is_foreign(shards):
        raise UserError(
            f"noise.pairs: requires data.shards to be the folder of one local packed dataset, without data.join, got "
            f"{shards}. {cure}"
        )
    dataset = load_dataset(shards)
    if dataset.extensions or any(shard.url for own in dataset.splits.values() for shard in own):
        raise UserError(f"noise.pairs: {shards} is an index of shards that are stored elsewhere. {cure}")
    seen = {member for modality in student for member in modality.members} | {"meta.json", "label.txt"}
    read = {member for modality in teacher for member in modality.members}
    members = frozenset(read & dataset.fields.keys() - seen)
    if not members:
        raise UserError(
            f"noise.pairs: {config.run}: the teacher reads no member of {shards} that the student does not read, so "
            "there are no pairs to mismatch. Use a teacher of another modality, or remove `noise`."
        )
    about = json.dumps([dataset.digest(), sorted(members), share])
    name = f"{Path(shards).resolve().name}_{100 * share:g}_{sha256(about.encode()).hexdigest()[:8]}"
    return BrokenCopy(Path(shards), out / name, members, share)


def write_copy(copy: BrokenCopy) -> None:
    """Write the copy, unless this is done. The same dataset always gives the same bytes.

    The other splits are the same files, as hard links where the file system allows it.

    Args:
        copy: What to write.
    """
    copy.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{copy.folder}.lock"):
        if (copy.folder / MANIFEST).is_file():  # written last
            return
        log.info(f"{copy.folder}: mismatching {100 * copy.share:g} % of the training pairs")
        dataset = load_dataset(copy.source)
        broken: list[str] = []
        train = [_break_shard(copy, dataset, shard, broken) for shard in dataset.splits["train"]]
        for split, shards in dataset.splits.items():
            for shard in shards if split != "train" else []:
                _link(copy.source / shard.file, copy.folder / shard.file)
        write_atomic(copy.folder / BROKEN, json.dumps(broken, indent=1).encode())
        changed = dataset.model_copy(update={"splits": dataset.splits | {"train": train}})
        write_atomic(copy.folder / MANIFEST, changed.model_dump_json(indent=1).encode())


def is_chosen(key: str, share: float) -> bool:
    """Whether to mismatch a sample. A larger share chooses the same samples and others.

    Args:
        key: Key of the sample.
        share: Fraction of the samples to choose, in [0, 1].
    """
    return digest(f"broken/0/{key}") / 2**64 < share


def _break_shard(copy: BrokenCopy, dataset: Dataset, shard: Shard, broken: list[str]) -> Shard:
    """Write a shard whose chosen samples have the teacher's members of the next chosen one, and add their keys."""
    own = {
        raw["__key__"]: held
        for raw in _read(copy, dataset, shard, copy.members)
        if is_chosen(raw["__key__"], copy.share) and (held := _members(raw))
    }
    others = dict(zip(own, [*list(own.values())[1:], *list(own.values())[:1]], strict=True))
    broken += [key for key in own if own[key] != others[key]]  # a single sample has nobody to exchange with

    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        for raw in _read(copy, dataset, shard, frozenset(dataset.fields)):
            held = _members(raw)
            if (key := raw["__key__"]) in others:
                held = {name: data for name, data in held.items() if name not in copy.members} | others[key]
            yield key, held

    return write_shard(copy.folder / shard.file, samples())


def _read(copy: BrokenCopy, dataset: Dataset, shard: Shard, members: frozenset[str]) -> Iterator[Sample]:
    return read_shard(dataset.layout(copy.source), shard, 0, shard.samples, members, tolerant=False)


def _members(raw: Sample) -> dict[str, bytes]:
    return {name: data for name, data in raw.items() if not name.startswith("__")}


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)  # of an interrupted copy
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
