"""Tables and sequences on disk, for data that may not fit in memory. They are removed when the process ends.

SQLite keeps about 2 MB in memory and sorts on disk. It uses the folder in `SQLITE_TMPDIR` or `TMPDIR`, else /var/tmp.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar, overload

Item = TypeVar("Item", bound=tuple[object, ...])


def scratch(*tables: str) -> sqlite3.Connection:
    """Open a temporary database.

    Args:
        tables: One definition per table: `"name (column TYPE, …)"`.

    Raises:
        sqlite3.OperationalError: The disk is full.
    """
    db = sqlite3.connect("", check_same_thread=False)
    for statement in ("PRAGMA journal_mode = OFF", *(f"CREATE TABLE {table}" for table in tables)):
        db.execute(statement)
    return db


def blob(text: str) -> bytes:
    """Encode a string as bytes that compare and sort like the string. SQLite text does not accept lone surrogates."""
    return text.encode("utf-8", "surrogatepass")


def unblob(data: bytes) -> str:
    """Decode the bytes that `blob` returned."""
    return data.decode("utf-8", "surrogatepass")


class Spilled(Sequence[Item], Generic[Item]):
    """A sequence of tuples, stored on disk as JSON. Items are rebuilt each time they are read.

    Args:
        build: Makes an item from its values.
        items: Initial items.
    """

    def __init__(self, build: Callable[..., Item], items: Iterable[Item] = ()) -> None:
        self._db, self._build, self._count = scratch("items (number INTEGER PRIMARY KEY, data TEXT)"), build, 0
        for item in items:
            self.append(item)

    def append(self, item: Item) -> None:
        """Append an item whose values are valid JSON.

        Raises:
            sqlite3.OperationalError: The disk is full.
        """
        self._db.execute("INSERT INTO items VALUES (?, ?)", (self._count, json.dumps(item)))
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Item]:
        return (
            self._build(*json.loads(data)) for (data,) in self._db.execute("SELECT data FROM items ORDER BY number")
        )

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> list[Item]: ...
    def __getitem__(self, place: int | slice) -> Item | list[Item]:
        numbers = range(self._count)[place]
        if isinstance(numbers, range):
            return [self[number] for number in numbers]
        (data,) = self._db.execute("SELECT data FROM items WHERE number = ?", (numbers,)).fetchone()
        return self._build(*json.loads(data))
