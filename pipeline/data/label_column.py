"""Labels as spreadsheets and pandas write them: `1`, `1.0`, `01` and ` 1 ` are one class, `-1` is none."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from pipeline.common.file_names import nfc

log = logging.getLogger(__name__)

MISSING = {
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"),
    *("NULL", "NaN", "None", "n/a", "nan", "null"),
}
"""Cells without a value, as `pandas.read_csv` has them."""

NONE = re.compile(r"-0*1(\.0*)?")
"""Minus one, which stands for no class."""

WHOLE = re.compile(r"[+-]?[0-9]{1,18}(\.0*)?")


@dataclass(frozen=True)
class LabelColumn:
    """How the values of a label are read.

    Attributes:
        name: The label: a column of a table, or a place in shards.
        whole: Whether all its values are whole numbers.
        given: Names of classes that are given; they are names whatever they look like.
        names: The distinct classes, in order: numbers as numbers.
        notes: What is read otherwise than it is written, in words.
    """

    name: str
    whole: bool
    given: frozenset[str] = frozenset()
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, cells: Iterable[str], classes: Collection[str] = ()) -> LabelColumn:
        """Look at all values of a label."""
        distinct = {nfc(cell.strip()) for cell in cells}
        known = frozenset(map(nfc, classes))
        values = distinct - known - MISSING
        column = cls(name, all(WHOLE.fullmatch(value) for value in values), known)
        missing = sorted(value for value in distinct if value and not column.read(value))
        changed = sorted(value for value in values if column.read(value) not in ("", value))
        notes = []
        if missing:
            notes.append(f"label `{name}`: {_some(missing)} {'is' if len(missing) == 1 else 'are'} read as no label")
        if changed:
            more = f", and {len(changed) - 1} more likewise" if len(changed) > 1 else ""
            notes.append(f"label `{name}`: `{changed[0]}` is read as the whole number {column.read(changed[0])}{more}")
        found = {value for value in map(column.read, distinct) if value}
        if negative := sorted(filter(is_negative, found)):
            notes.append(f"label `{name}`: {_some(negative)}: negative numbers are no classes")
        names = found.difference(negative)
        return replace(column, names=tuple(sort_classes(names)), notes=tuple(notes))

    def read(self, cell: str) -> str:
        """The class of a value; empty if it has none."""
        value = nfc(cell.strip())
        if value in self.given:
            return value
        if value in MISSING or NONE.fullmatch(value):
            return ""
        return str(int(value.split(".")[0])) if self.whole and WHOLE.fullmatch(value) else value

    def say(self) -> None:
        """Log what is read otherwise than it is written."""
        for note in self.notes:
            log.info(note)


def without_samples(label: str, split: str, classes: Sequence[str]) -> str:
    """Say which classes of a label have no samples in a split.

    Args:
        label: The label.
        split: The split.
        classes: At least one class.
    """
    which = "classes" if label == "label" else f"classes of {label}"
    more = f" and {len(classes) - 10} more" if len(classes) > 10 else ""
    return f"{which} without {split} samples: {', '.join(classes[:10])}{more}"


def sort_classes(values: Iterable[str]) -> list[str]:
    """Sort the distinct class names, as numbers if all are whole numbers."""
    names = set(values)
    if all(name.isdecimal() and len(name) < 19 for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def is_negative(value: str) -> bool:
    """Whether a value is a negative whole number, which is no class."""
    return value[:1] == "-" and value[1:].isdecimal()


def _some(values: list[str]) -> str:
    shown = ", ".join(f"`{value}`" for value in values[:3])
    return shown + (f" and {len(values) - 3} more" if len(values) > 3 else "")
