"""Finds identical members, and near-identical photos, in several splits."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations

import cv2
import numpy as np

from pipeline.common.spill import blob, scratch, unblob
from pipeline.data.member_formats import SUFFIXES, Facts, field_of

SMALLEST = 256
"""Bytes. Smaller files have little content, e.g. a mask of one class, and may be equal by coincidence."""

TOLERATED = 0.01
"""Up to this fraction of a split, equal members are a note, since public datasets have some. More are an error, ..."""

FEW = 10
"""... unless there are no more than this many."""

NEAR = 3
"""Photos are near duplicates if at most this many of the 64 bits of their hashes differ."""

EXAMPLES = 3
CURE = "Pack again with a --group that they have in common, or remove them: training data must not be tested on"

_SIGNED = np.dtype("<i8")


def compared(member: str, facts: Facts) -> bool:
    """Whether equal bytes in two samples imply the same recording, which is not so for texts, masks and labels."""
    is_mask = facts.mask is not None and facts.mask.dtype == np.uint8 and field_of(member) != "rgb"
    is_image = facts.size is not None and not is_mask
    return is_image or field_of(member) == "points" or member.endswith(SUFFIXES["audio"])


def content(data: bytes) -> int:
    """A signed 64-bit hash of bytes."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def look(data: bytes) -> int | None:
    """The difference hash of a photo: for 8 x 8 cells, whether the cell to the right is brighter.

    Args:
        data: A valid JPEG, PNG or WebP.

    Returns:
        A signed 64-bit hash; None for a photo without structure, whose hash many other photos share.
    """
    grey = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    cells = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    bits = cells[:, 1:] > cells[:, :-1]
    if not 8 <= np.count_nonzero(bits) <= 56:
        return None
    return int.from_bytes(np.packbits(bits).tobytes(), "little", signed=True)


class Duplicates:
    """Hashes of the members of all samples: about 40 bytes per member on disk, nothing in memory."""

    def __init__(self) -> None:
        self.db = scratch("hashes (kind TEXT, hash INTEGER, split TEXT, file TEXT, key BLOB)")

    def add(self, split: str, file: str, hashes: Iterable[tuple[str, int, str]]) -> None:
        """Add the hashes of a shard: the kind (a field, or `look`), the hash, and the key or ""."""
        rows = ((kind, number, split, file, blob(key)) for kind, number, key in hashes)
        self.db.executemany("INSERT INTO hashes VALUES (?, ?, ?, ?, ?)", rows)

    def lines(self, samples: dict[str, int]) -> Iterator[tuple[bool, str]]:
        """Yield for each finding whether it is an error, and its text.

        Args:
            samples: Split -> number of samples.
        """
        self.db.execute("CREATE INDEX IF NOT EXISTS by_hash ON hashes (kind, hash, split)")
        kinds = [
            kind for (kind,) in self.db.execute("SELECT DISTINCT kind FROM hashes WHERE kind != 'look' ORDER BY kind")
        ]
        for one, other in combinations(samples, 2):
            for kind in kinds:
                if count := self._equal(kind, one, other):
                    examples = self._examples(kind, one, other)
                    yield (
                        count > max(TOLERATED * samples[other], FEW),
                        f"{kind}: {count} of {samples[other]} samples of {other} have the same content as samples of "
                        f"{one}: {examples}. {CURE}",
                    )
            if pairs := _near(self._looks(one), self._looks(other)):
                places = "; ".join(f"{self._place(a)} and {self._place(b)}" for a, b in pairs[:EXAMPLES])
                count = len({b for _, b in pairs})
                yield (
                    False,
                    f"{count} of {samples[other]} photos of {other} look like photos of {one} (near duplicates): "
                    f"{places}. {CURE}",
                )

    def _equal(self, kind: str, one: str, other: str) -> int:
        """The number of samples of a split whose member also occurs in another split."""
        twin = "SELECT 1 FROM hashes a WHERE a.kind = b.kind AND a.hash = b.hash AND a.split = ?"
        sql = f"SELECT COUNT(*) FROM hashes b WHERE kind = ? AND split = ? AND EXISTS ({twin})"
        return int(self.db.execute(sql, (kind, other, one)).fetchone()[0])

    def _examples(self, kind: str, one: str, other: str) -> str:
        sql = (
            "SELECT MIN(a.rowid), b.rowid FROM hashes b JOIN hashes a ON a.kind = b.kind AND a.hash = b.hash "
            f"WHERE b.kind = ? AND b.split = ? AND a.split = ? GROUP BY b.rowid LIMIT {EXAMPLES}"
        )
        pairs = self.db.execute(sql, (kind, other, one)).fetchall()
        return "; ".join(f"{self._place(a)} and {self._place(b)}" for a, b in pairs)

    def _place(self, row: int) -> str:
        file, key = self.db.execute("SELECT file, key FROM hashes WHERE rowid = ?", (row,)).fetchone()
        return f"{file}: {unblob(key)}" if key else str(file)

    def _looks(self, split: str) -> np.ndarray:
        """Row and hash of the photos of a split, int64 `[N, 2]`: 16 bytes per photo."""
        rows = self.db.execute("SELECT rowid, hash FROM hashes WHERE kind = 'look' AND split = ?", (split,))
        return np.fromiter((number for row in rows for number in row), _SIGNED).reshape(-1, 2)


def _near(one: np.ndarray, other: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of rows whose hashes differ in at most NEAR bits, with one pair per row of `other`.

    Two hashes that differ in at most three bits are equal in one of four parts of 16 bits.
    """
    found: dict[int, int] = {}
    if not len(one) or not len(other):
        return []
    hashes, wanted = one[:, 1].view(np.uint64), other[:, 1].view(np.uint64)
    for part in range(4):
        shift, low = np.uint64(16 * part), np.uint64(0xFFFF)
        keys = (hashes >> shift) & low
        order = np.argsort(keys, kind="stable")
        starts = np.searchsorted(keys[order], np.arange(1 << 16, dtype=np.uint64))
        ends = np.append(starts[1:], len(order))
        for row, number, key in zip(other[:, 0].tolist(), wanted, ((wanted >> shift) & low).tolist(), strict=True):
            near = order[starts[key] : ends[key]]
            if row in found or not len(near):
                continue
            close = np.flatnonzero(_bits(hashes[near] ^ number) <= NEAR)
            if len(close):
                found[row] = int(one[near[close[0]], 0])
    return [(there, row) for row, there in sorted(found.items())]


def _bits(numbers: np.ndarray) -> np.ndarray:
    """The number of set bits in each uint64 of `[N]`."""
    return np.unpackbits(numbers.view(np.uint8).reshape(-1, 8), axis=1).sum(1)


def encode_hashes(numbers: Sequence[int]) -> str:
    """Hashes as text: 11 characters each."""
    return base64.b64encode(np.array(numbers, _SIGNED).tobytes()).decode()


def decode_hashes(text: str) -> list[int]:
    """Decode the result of `encode_hashes`."""
    found: list[int] = np.frombuffer(base64.b64decode(text), _SIGNED).tolist()
    return found


def hashes_of(members: Mapping[str, bytes | None], facts: Mapping[str, Facts]) -> Iterator[tuple[str, int]]:
    """The field and the hash of each member of a sample that takes part in the comparison."""
    for member, own in facts.items():
        if len(data := members[member] or b"") >= SMALLEST and compared(member, own):
            yield field_of(member), content(data)
