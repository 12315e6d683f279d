"""A far file in pieces: the same bytes as a near one, and few of them."""

from __future__ import annotations

import io
import random
from pathlib import Path

from foreign_shards import plain_tar, shard_writer

from pipeline.data.range_reader import RangeReader
from pipeline.data.tar import read_members


class Far:
    """A file that notes what is asked of it."""

    def __init__(self, data: bytes) -> None:
        self.data, self.asked = data, list[tuple[int, int]]()
        self.reader = RangeReader(self.fetch, len(data))

    def fetch(self, start: int, stop: int) -> bytes:
        self.asked.append((start, stop))
        return self.data[start:stop]

    @property
    def bytes(self) -> int:
        return sum(stop - start for start, stop in self.asked)


def test_reads_and_seeks_are_those_of_a_file() -> None:
    rng = random.Random(0)
    data = rng.randbytes(200_000)
    far, near = Far(data), io.BytesIO(data)
    for _ in range(2000):
        if rng.random() < 0.5:
            whence = rng.randrange(2)
            offset = rng.randrange(len(data)) if whence == 0 else rng.choice([0, 512, 40_000])
            assert far.reader.seek(offset, whence) == near.seek(offset, whence)
        size = rng.choice([0, 1, 512, 5000])
        assert far.reader.read(size) == near.read(size)
        assert far.reader.tell() == min(near.tell(), far.reader.tell())
    assert all(0 <= start < stop <= len(data) for start, stop in far.asked)


def test_of_large_members_only_headers_come(tmp_path: Path) -> None:
    (path,) = shard_writer(tmp_path, [(f"{n:04d}", {"bin": bytes(100_000)}) for n in range(50)], maxcount=50)
    far = Far(path.read_bytes())
    assert len(list(read_members(far.reader, lambda name: False))) == 50  # type: ignore[arg-type]
    assert far.bytes < 0.02 * len(far.data)
    assert len(far.asked) <= 55


def test_small_members_come_many_at_a_time(tmp_path: Path) -> None:
    path = plain_tar(tmp_path / "0.tar", [(f"{n:05d}", {"txt": b"x" * 300, "cls": b"1"}) for n in range(2000)])
    far = Far(path.read_bytes())
    assert len(list(read_members(far.reader, lambda name: False))) == 4000  # type: ignore[arg-type]
    assert len(far.asked) < 30
    assert far.bytes <= 1.01 * len(far.data)  # a header across two pieces comes twice
