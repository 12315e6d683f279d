"""Join by key: adds members from the shards of another dataset, in any order, to a sample.

Keys are compared in one Unicode normal form.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import blake2b
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeline.common.disk_errors import machine_fault
from pipeline.common.errors import UserError
from pipeline.common.file_names import nfc
from pipeline.data.dataset import Dataset, Shard
from pipeline.data.manifest import local
from pipeline.data.member_formats import read_meta
from pipeline.data.shard_reader import Sample, cure, open_shard, read_samples
from pipeline.data.tar import BLOCK, group_members, read_members

OPEN = 64
"""Maximum number of shards that a process keeps open."""

ROW = np.dtype([("key", "u8"), ("shard", "u4"), ("start", "i8"), ("stop", "i8")])
"""Hash of the key of a sample, index of its shard, its first byte there, and its last byte plus 1."""


class Join:
    """Finds samples in all splits of a dataset by key. Memory: 28 bytes per sample.

    Args:
        folder: Folder, URL or pattern of the dataset.
        manifest: Its manifest.
        tolerant: Skip shards that cannot be read. Samples that are not found then count as faulty.

    Raises:
        UserError: Two samples have the same key, or a shard cannot be read.
    """

    def __init__(self, folder: str | Path, manifest: Dataset, tolerant: bool = False) -> None:
        self.folder, self.tolerant = local(folder), tolerant
        self.unreadable: list[str] = []
        self.layout = manifest.layout(self.folder)
        self.shards = tuple({shard.file: shard for shard in chain.from_iterable(manifest.splits.values())}.values())
        self.cure = cure(self.shards[0]) if self.shards else ""
        self.process = -1
        self.files: dict[int, BinaryIO] = {}
        parts = [np.array([*self._rows(number, shard)], dtype=ROW) for number, shard in enumerate(self.shards)]
        self.table = np.concatenate([np.empty(0, ROW), *parts])
        self.table.sort(order="key")
        if (twice := np.flatnonzero(self.table["key"][1:] == self.table["key"][:-1])).size:
            file = self.shards[self.table["shard"][twice[0]]].file
            raise UserError(
                f"{folder}: {twice.size} keys occur more than once, the first of them in {file}. data.join requires "
                "unique keys."
            )

    def complete(self, sample: Sample, members: frozenset[str]) -> Sample:
        """Add the missing members of a sample from this dataset.

        Camera parameters in this dataset's `meta.json` are added to the sample's own, since they describe the added
        members.

        Args:
            sample: A raw sample.
            members: Names of the members to add, if the sample does not have them.

        Returns:
            The sample with the added members.

        Raises:
            ValueError: The key was not found and may be in an unreadable shard.
            OSError: The shard of the key can no longer be read.
        """
        key = sample["__key__"]
        place = int(np.searchsorted(self.table["key"], _hash(key)))
        if place == len(self.table) or self.table["key"][place] != _hash(key):
            if self.unreadable:
                raise ValueError(
                    f"sample {key} was not found; it may be in a shard that cannot be read: {self.unreadable[0]}"
                )
            return sample
        row = self.table[place]
        file = self._file(int(row["shard"]))
        file.seek(int(row["start"]))
        data = file.read(int(row["stop"] - row["start"])) + bytes(2 * BLOCK)
        near = read_samples(BytesIO(data), "", members, self.layout)
        found = next((one for one in near if nfc(one["__key__"]) == nfc(key)), {"__url__": ""})
        del found["__url__"]
        return found | sample | joined_meta(found, sample)

    def _rows(self, number: int, shard: Shard) -> Iterator[tuple[int, int, int, int]]:
        """The rows of the table for the samples of a shard."""
        path = shard.path(self.folder)
        try:
            with ExitStack() as stack:
                file = open_shard(stack, path, shard)
                start = 0
                ends = ((name, file.tell()) for name, _ in read_members(file, lambda name: False))
                for key, held in group_members(ends):
                    end = max(held.values())
                    yield _hash(key), number, start, end
                    start = end
        except (OSError, ValueError) as error:
            if fault := machine_fault(error, path):
                raise fault from None
            if not self.tolerant:
                raise UserError(f"{path}: {error}. {cure(shard)}") from None
            self.unreadable.append(f"{shard.file} ({error})")

    def _file(self, number: int) -> BinaryIO:
        if self.process != os.getpid():  # a forked worker must not share file positions with its parent
            self.process, self.files = os.getpid(), {}
        if number not in self.files:
            if len(self.files) == OPEN:
                self.files.pop(next(iter(self.files))).close()
            with ExitStack() as stack:
                self.files[number] = open_shard(stack, self.shards[number].path(self.folder), self.shards[number])
                stack.pop_all()  # it stays open
        return self.files[number]

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"process": -1, "files": {}}


def joined_meta(found: Sample, sample: Sample) -> Sample:
    """Combine the `meta.json` of a sample with that of the members found for it; {} unless both have one.

    The camera comes from the members found; group and labels come from the sample itself.

    Args:
        found: Members from the other dataset.
        sample: Members of the sample.
    """
    if not ("meta.json" in found and "meta.json" in sample):
        return {}
    theirs, own = (read_meta(one["meta.json"]) for one in (found, sample))
    camera = {name: theirs[name] for name in ("intrinsics", "gravity") if name in theirs}
    return {"meta.json": json.dumps(camera | own).encode()} if camera else {}


def _hash(key: str) -> int:
    return int.from_bytes(blake2b(nfc(key).encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")
