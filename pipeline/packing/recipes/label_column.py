"""Reads labels as spreadsheets and pandas write them: `1`, `1.0`, `01` and ` 1 ` are one class, `-1` is no label."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

log = logging.getLogger(__name__)

MISSING = {
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"),
    *("NULL", "NaN", "None", "n/a", "nan", "null"),
}
"""Cell contents that mean "no value", as in `pandas.read_csv`."""

NONE = re.compile(r"-0*1(\.0*)?")
"""Spellings of minus one, which means no label."""

WHOLE = re.compile(r"[+-]?[0-9]{1,18}(\.0*)?")


@dataclass(frozen=True)
class LabelColumn:
    """Determines how the cells of a label column are read.

    Attributes:
        name: The column.
        whole: Whether all values of the column are whole numbers.
        classes: Class names set by the user; these always count as names, even if they look like numbers.
    """

    name: str
    whole: bool
    classes: frozenset[str] = frozenset()

    @classmethod
    def of(cls, name: str, cells: Iterable[str], classes: Collection[str] = ()) -> LabelColumn:
        """Inspect all cells of a column, and log which values are not read as they are written."""
        distinct = {cell.strip() for cell in cells}
        known = frozenset(classes)
        values = distinct - known - MISSING
        column = cls(name, all(WHOLE.fullmatch(value) for value in values), known)
        missing = sorted(value for value in distinct if value and not column.read(value))
        changed = sorted(value for value in values if column.read(value) not in ("", value))
        if missing:
            log.info(f"label `{name}`: {_some(missing)} {'is' if len(missing) == 1 else 'are'} read as no label")
        if changed:
            more = f", and {len(changed) - 1} more likewise" if len(changed) > 1 else ""
            log.info(f"label `{name}`: `{changed[0]}` is read as the whole number {column.read(changed[0])}{more}")
        return column

    def read(self, cell: str) -> str:
        """The class of a cell; empty if it has none."""
        value = cell.strip()
        if value in self.classes:
            return value
        if value in MISSING or NONE.fullmatch(value):
            return ""
        return str(int(value.split(".")[0])) if self.whole else value


def _some(values: list[str]) -> str:
    shown = ", ".join(f"`{value}`" for value in values[:3])
    return shown + (f" and {len(values) - 3} more" if len(values) > 3 else "")
