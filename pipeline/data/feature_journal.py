"""Teacher features that training has computed, but not yet written to cached-feature shards: append-only journals.

A journal `NAME.ID.journal` begins with one line, the manifest of the cache without its cached-feature shards. A record
follows for each sample and view: its place, its key, and the bytes of its member in the cached-feature shard. Each
process appends to a journal of its own and reads those of all others. A record is used only if its hash is right and
its shard has the same content, so neither an incomplete record of a killed process nor a changed shard does harm.
"""

from __future__ import annotations

import os
import struct
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from pipeline.common.disk_errors import machine_fault
from pipeline.data.dataset import Shard
from pipeline.data.feature_cache import Cache, differences

_RECORD = struct.Struct("<5I16s")
"""Number of the shard in the first line, place of the sample, view, bytes of its key and of its features, hash."""
_NUMBERS = struct.Struct("<5I")


@dataclass(frozen=True)
class Record:
    """The features of one sample and view.

    Attributes:
        index: Index of the sample in the split.
        key: Its key.
        features: What `pipeline.data.feature_cache.encode` returned.
    """

    index: int
    key: str
    features: bytes


class Journal:
    """All journals of a cache, and the one that this process appends to. Memory: 12 bytes per sample and view.

    Args:
        folder: Local folder of the dataset.
        about: The manifest of the cache, without cached-feature shards.
        shards: The shards of the training split.
    """

    def __init__(self, folder: Path, about: Cache, shards: Sequence[Shard]) -> None:
        self.folder, self.about, self.shards = folder, about, tuple(shards)
        self.ends = list(accumulate(shard.samples for shard in shards))
        self.files: list[BinaryIO] = []
        self.own: int | None = None
        shape = (about.views, self.ends[-1])
        self.file, self.offset = np.zeros(shape, np.int32), np.full(shape, -1, np.int64)
        for path in self._paths():
            with suppress(FileNotFoundError):  # another process has completed the cache
                self._scan(path)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self.about.name}.*.journal"))

    def missing(self) -> int:
        """Number of features that no journal contains."""
        return int((self.offset < 0).sum())

    def load(self, view: int, index: int) -> Record | None:
        """Read the features of a sample.

        Args:
            view: The view.
            index: Index of the sample in the split.

        Returns:
            The features; None if no journal contains them, or if they are damaged.
        """
        at = int(self.offset[view, index])
        if at < 0:
            return None
        file = self.files[self.file[view, index]]
        file.seek(at)
        *numbers, known = _RECORD.unpack(file.read(_RECORD.size))
        data = file.read(numbers[3] + numbers[4])
        if _hash(numbers, data) != known:
            self.offset[view, index] = -1
            return None
        return Record(index, data[: numbers[3]].decode("utf-8", "surrogatepass"), data[numbers[3] :])

    def complete(self, shard: Shard) -> list[int]:
        """The places in a shard whose features are known for all views.

        Args:
            shard: The shard.
        """
        first = self.first(shard)
        held = (self.offset[:, first : first + shard.samples] >= 0).all(0)
        views = range(self.about.views)
        return [
            int(place) for place in np.flatnonzero(held) if all(self.load(view, first + int(place)) for view in views)
        ]

    def first(self, shard: Shard) -> int:
        """Index in the split of the first sample of a shard."""
        return self.ends[self.shards.index(shard)] - shard.samples

    def append(self, view: int, records: Iterable[Record]) -> None:
        """Append records to the journal of this process.

        Args:
            view: Their view.
            records: Features of samples that no journal contains.

        Raises:
            UserError: The disk is full, or another problem of the machine.
        """
        parts: list[bytes] = []
        placed: list[tuple[int, int]] = []
        opened = self._open()
        file = self.files[opened]
        at = file.seek(0, os.SEEK_END)
        for record in records:
            number = int(np.searchsorted(self.ends, record.index, side="right"))
            place = record.index - self.ends[number] + self.shards[number].samples
            key = record.key.encode("utf-8", "surrogatepass")
            numbers, data = [number, place, view, len(key), len(record.features)], key + record.features
            parts += [_RECORD.pack(*numbers, _hash(numbers, data)), data]
            placed.append((record.index, at))
            at += _RECORD.size + len(data)
        _write(file, b"".join(parts))
        for index, at in placed:
            self.file[view, index], self.offset[view, index] = opened, at

    def remove(self) -> None:
        """Delete all journals of this cache, once it is complete."""
        for path in self._paths():
            with suppress(OSError):  # another process has deleted it; Windows does not delete open files
                path.unlink()

    def _open(self) -> int:
        """The number of the journal of this process, which is created for the first record."""
        if self.own is None:
            path = self.folder / f"{self.about.name}.{uuid.uuid4().hex[:12]}.journal"
            file = cast(BinaryIO, path.open("x+b", buffering=0))  # what has been appended survives the process
            _write(file, self.about.model_dump_json().encode() + b"\n")
            self.own = len(self.files)
            self.files.append(file)
        return self.own

    def _scan(self, path: Path) -> None:
        """Note where a journal has the features of which sample."""
        file = path.open("rb")
        try:
            found = Cache.model_validate_json(file.readline())
        except ValueError:  # its process was killed before it had written the first line
            return
        if not self._fits(found):
            return
        here = {
            (shard.file, shard.content): (end - shard.samples, end)
            for shard, end in zip(self.shards, self.ends, strict=True)
        }
        ranges = [here.get(listed, (0, 0)) for listed in found.fingerprint.shards.items()]  # (0, 0): not in this split
        number, size, at = len(self.files), os.fstat(file.fileno()).st_size, file.tell()
        self.files.append(file)
        while at + _RECORD.size <= size:
            file.seek(at)
            shard, place, view, key, length, _ = _RECORD.unpack(file.read(_RECORD.size))
            after = at + _RECORD.size + key + length
            if after > size or shard >= len(ranges) or not length:  # incomplete, or zeros after a power failure
                return
            index = ranges[shard][0] + place
            wanted = index < ranges[shard][1] and view < self.about.views
            if wanted and self.load(view, index) is None:  # another journal may have it, damaged or not
                self.file[view, index], self.offset[view, index] = number, at
            at = after

    def _fits(self, found: Cache) -> bool:
        """Whether a journal belongs to this teacher, view and format; its shards are compared one by one."""
        here = self.about.fingerprint.model_copy(update={"shards": {}})
        keys = ("views", "dtype", "precision", "pooled", "maps", "classes")
        return not differences(found.fingerprint, here) and all(
            getattr(found, key) == getattr(self.about, key) for key in keys
        )


def _hash(numbers: Sequence[int], data: bytes) -> bytes:
    return blake2b(_NUMBERS.pack(*numbers) + data, digest_size=16).digest()


def _write(file: BinaryIO, data: bytes) -> None:
    """Write all of the data to an unbuffered file. Raises UserError if the disk is full, or for another such fault."""
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        raise machine_fault(error, file.name) or error from None
