"""Reads a remote file by range requests, for readers that only need the tar headers, not the data in between."""

from __future__ import annotations

from collections.abc import Callable

LEAST, MOST = 1536, 1 << 18
"""Bytes per request: LEAST (enough for a header) after a long seek; doubled up to MOST during sequential reading."""
LEAP = 1 << 15
"""Gap in bytes; a shorter gap counts as sequential reading."""


class RangeReader:
    """A seekable file that requests its bytes when they are first read.

    Args:
        fetch: A function from the first byte and the last byte plus 1 to the bytes between them.
        size: Size of the file in bytes.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        self.fetch, self.size = fetch, size
        self.place, self.start, self.piece = 0, 0, b""
        self.most = LEAST

    def tell(self) -> int:
        """Position of the next read in bytes."""
        return self.place

    def seek(self, offset: int, whence: int = 0) -> int:
        """Set the position.

        Args:
            offset: Offset in bytes.
            whence: 0: from the start of the file; 1: from the current position.

        Returns:
            The new position.
        """
        self.place = offset if whence == 0 else self.place + offset
        return self.place

    def read(self, size: int) -> bytes:
        """Read `size` bytes; fewer only at the end of the file."""
        begin = self.place - self.start
        if not 0 <= begin <= begin + size <= len(self.piece):
            onwards = self.start <= self.place <= self.start + len(self.piece) + LEAP
            self.most = min(2 * self.most, MOST) if onwards and self.piece else LEAST
            end = min(self.place + max(size, self.most), self.size)
            self.piece = self.fetch(self.place, end) if end > self.place else b""
            self.start, begin = self.place, 0
        data = self.piece[begin : begin + size]
        self.place += len(data)
        return data
