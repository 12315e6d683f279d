"""Labels in foreign shards: the content of a member, or a value in a JSON member."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from pipeline.data.label_column import LabelColumn

LARGEST = 1 << 20
"""Maximum size in bytes of a member that contains a label."""


@dataclass(frozen=True)
class LabelValue:
    """Location of a label in a sample.

    Attributes:
        member: Member in the shard, e.g. `cls`.
        path: Path of the value in a JSON member; () if the whole member is the value.
    """

    member: str
    path: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> LabelValue:
        """Parse a location as in `data.label`: `cls`, `json:category` or `json:labels.color`."""
        member, colon, path = text.partition(":")
        return cls(member, tuple(path.split(".")) if colon else ())

    def read(self, data: bytes) -> str:
        """Read the value as a string.

        Args:
            data: Bytes of the member.

        Raises:
            ValueError: The member is not text or not JSON, or the path does not lead to a string, whole number,
                boolean or null. Null and NaN are empty strings.
        """
        if len(data) > LARGEST:
            raise ValueError(f"the member has {len(data)} bytes; the maximum for a label is {LARGEST}")
        if not self.path:
            return data.decode("utf-8").strip()
        try:
            value = json.loads(data)
            for key in self.path:
                value = value[key]
        except RecursionError:
            raise ValueError("not JSON") from None
        except (KeyError, TypeError, IndexError):
            raise ValueError(f"has no value at {'.'.join(self.path)}") from None
        if value is None or value != value:
            return ""
        if not isinstance(value, str | int) and not (isinstance(value, float) and value.is_integer()):
            raise ValueError(f"{'.'.join(self.path)} is neither a string nor a whole number")
        return str(value)


def class_names(values: Iterable[str]) -> list[str]:
    """Derive class names from the distinct values of a label, which are read as those of a table.

    Args:
        values: The distinct values.

    Returns:
        `0`, `1`, … up to the largest value if all values are whole numbers, else the sorted values.
    """
    names = LabelColumn.of("", values).names
    if names and all(name.isdecimal() and len(name) <= 6 for name in names):
        return [str(number) for number in range(int(names[-1]) + 1)]
    return list(names)


@dataclass(frozen=True)
class ForeignLabel:
    """A label in foreign shards: its location and its classes.

    Attributes:
        value: Location of the value, with the member's name in wcord.
        names: Class names in order. A value is either the name or the index of a class.
    """

    value: LabelValue
    names: tuple[str, ...]

    def index(self, data: bytes) -> int:
        """Read the class index of a sample; -1 if it is unlabelled.

        Args:
            data: Bytes of the member.

        Raises:
            ValueError: There is no value, or no class has this name or index.
        """
        text = self._column.read(self.value.read(data))
        if not text:
            return -1
        if text in self._numbers:
            return self._numbers[text]
        if text.isdecimal() and len(text) <= 9 and int(text) < len(self.names):
            return int(text)
        raise ValueError(f"`{text[:40]}` is neither the name nor the index of one of the {len(self.names)} classes")

    @cached_property
    def _column(self) -> LabelColumn:
        return LabelColumn("", whole=True, given=frozenset(self.names))

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}
