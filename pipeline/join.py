"""Join by key: members of a sample that lie in the shards of another data set, in whatever order those are."""

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

from pipeline.errors import UserError
from pipeline.members import read_meta
from pipeline.samples import Sample, open_shard
from pipeline.shards import Shard, load_dataset, local
from pipeline.tar import BLOCK, read_members

OPEN = 64
"""Shards that a process keeps open at a time."""

ROW = np.dtype([("key", "u8"), ("shard", "u4"), ("start", "i8"), ("stop", "i8")])
"""Hash of a sample's key, number of its shard, its first byte there and its end."""


class Join:
    """Finds samples of a packed data set, all its splits, by their key; 28 bytes of memory a sample.

    tolerant: shards that cannot be read are left out, and every sample that is not found may lie in them.
    Raises UserError for what is not a packed data set, a key that is there twice, or a shard that cannot be read.
    """

    def __init__(self, folder: str | Path, tolerant: bool = False) -> None:
        self.folder, self.tolerant = local(folder), tolerant
        self.unreadable: list[str] = []
        self.shards = tuple(chain.from_iterable(load_dataset(folder).splits.values()))
        self.process = -1
        self.files: dict[int, BinaryIO] = {}
        parts = [np.array([*self._rows(number, shard)], dtype=ROW) for number, shard in enumerate(self.shards)]
        self.table = np.concatenate([np.empty(0, ROW), *parts])
        self.table.sort(order="key")
        if (twice := np.flatnonzero(self.table["key"][1:] == self.table["key"][:-1])).size:
            file = self.shards[self.table["shard"][twice[0]]].file
            raise UserError(f"{folder}: {twice.size} keys are there twice, the first in {file}: keys must differ.")

    def complete(self, sample: Sample, members: frozenset[str]) -> Sample:
        """The sample with those of `members` that it does not have itself, where this data set has them; its
        `meta.json` with what that one's says of cameras, which is about the members that came with it.

        Raises ValueError for one that is not found and may lie in a shard that cannot be read; OSError or ValueError
        for one whose shard cannot be read any more.
        """
        key = sample["__key__"]
        place = int(np.searchsorted(self.table["key"], _hash(key)))
        if place == len(self.table) or self.table["key"][place] != _hash(key):
            if self.unreadable:
                raise ValueError(f"sample {key} is not among what can be read, without {self.unreadable[0]}")
            return sample
        row = self.table[place]
        file = self._file(int(row["shard"]))
        file.seek(int(row["start"]))
        data = file.read(int(row["stop"] - row["start"])) + bytes(2 * BLOCK)
        found: Sample = {}
        for name, content in read_members(BytesIO(data), lambda name: name.partition(".")[2].lower() in members):
            own, _, member = name.partition(".")
            if own == key and content is not None:
                found[member.lower()] = content
        return found | sample | _meta(found, sample)

    def _rows(self, number: int, shard: Shard) -> Iterator[tuple[int, int, int, int]]:
        """Of each sample of a shard."""
        path = self.folder / shard.file
        try:
            with ExitStack() as stack:
                file = open_shard(stack, path, shard)
                key, start, end = "", 0, 0
                for name, _ in read_members(file, lambda name: False):
                    own = name.partition(".")[0]
                    if own != key:
                        if key:
                            yield _hash(key), number, start, end
                        key, start = own, end
                    end = file.tell()
                if key:
                    yield _hash(key), number, start, end
        except (OSError, ValueError) as error:
            if not self.tolerant:
                raise UserError(f"{path}: {error}. Run `wcord check` on the data set.") from None
            self.unreadable.append(f"{shard.file} ({error})")

    def _file(self, number: int) -> BinaryIO:
        if self.process != os.getpid():  # a forked worker must not share its parent's place in the file
            self.process, self.files = os.getpid(), {}
        if number not in self.files:
            if len(self.files) == OPEN:
                self.files.pop(next(iter(self.files))).close()
            with ExitStack() as stack:
                self.files[number] = open_shard(stack, self.folder / self.shards[number].file, self.shards[number])
                stack.pop_all()  # it stays open
        return self.files[number]

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"process": -1, "files": {}}


def _meta(found: Sample, sample: Sample) -> Sample:
    """The two `meta.json` as one, where both have one; group and labels are those of the sample itself."""
    if not ("meta.json" in found and "meta.json" in sample):
        return {}
    theirs, own = (read_meta(one["meta.json"]) for one in (found, sample))
    camera = {name: theirs[name] for name in ("intrinsics", "gravity") if name in theirs}
    return {"meta.json": json.dumps(camera | own).encode()} if camera else {}


def _hash(key: str) -> int:
    return int.from_bytes(blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")
