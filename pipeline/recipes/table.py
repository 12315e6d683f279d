"""Tables as people have them, CSV or JSONL, and templates that make paths and names of their columns."""

from __future__ import annotations

import csv
import json
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.recipes import Refusal
from pipeline.scratch import Spilled

Row = Mapping[str, Any]
"""Column -> text, or a list or object that is none: a column of JSONL that nobody asks for may hold anything."""
Rows = Spilled[tuple[str, Row]]


class Template:
    """`hand_rgb/{id}.jpg` over a row's columns; a column's bare name is short for `{column}`.

    Only whole column names stand in braces: Python's attributes, indices and formats are not followed.
    Raises UserError, naming the columns, for text that names none or an unknown one.
    """

    def __init__(self, text: str, columns: Sequence[str], what: str) -> None:
        try:
            parts = [("", text, "", None)] if text in columns else list(string.Formatter().parse(text))
        except ValueError as error:
            raise UserError(f"{what}: `{text}`: {error}.") from None
        self.parts = [(literal, name) for literal, name, _, _ in parts]
        wrong = [name for _, name, form, conversion in parts if form or conversion or name not in (None, *columns)]
        if wrong:
            raise UserError(f"{what}: `{text}`: no column `{wrong[0]}`; there are {', '.join(columns)}.")
        if all(name is None for _, name in self.parts):
            raise UserError(f"{what}: `{text}` is no column and names none in braces; there are {', '.join(columns)}.")

    @property
    def names(self) -> list[str]:
        """The columns that it names."""
        return [name for _, name in self.parts if name is not None]

    def __call__(self, row: Row) -> str:
        """The text with the row's values, empty if one of them is empty. ValueError as of `cell`."""
        values = [cell(row, name) if name is not None else None for _, name in self.parts]
        if "" in values:
            return ""
        return "".join(literal + (value or "") for (literal, _), value in zip(self.parts, values, strict=True))


def cell(row: Row, column: str) -> str:
    """A row's text of a column, empty where it has none. ValueError where the column holds a list or an object."""
    value = row.get(column, "")
    if isinstance(value, str):
        return value
    kind = "a list of other things than texts" if isinstance(value, list) else "an object"
    raise ValueError(f"column `{column}` holds {kind}; a text, a number or a list of texts is wanted")


def read_table(path: Path) -> tuple[Rows, list[Refusal]]:
    """All rows as `(where, {column: value})`, and the lines that are no rows. Raises UserError if there are none."""
    rows, broken = spilled_rows(), []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for where, row in _jsonl(file) if path.suffix.lower() in (".jsonl", ".ndjson") else _csv(path, file):
                if isinstance(row, str):
                    broken.append(Refusal("", where, row))
                else:
                    rows.append((where, row))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}. Name a CSV or JSONL file.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a table in UTF-8: {error}.") from None
    if not rows:
        raise UserError(f"{path}: there are no rows in it. Give a CSV file with a header, or JSONL.")
    return rows, broken


def spilled_rows(rows: Iterable[tuple[str, Row]] = ()) -> Rows:
    """Rows on disk, of which any number takes no memory."""
    return Spilled(lambda where, row: (where, row), rows)


def _csv(path: Path, file: Iterable[str]) -> Iterator[tuple[str, Row | str]]:
    reader = csv.reader(file)
    header = next(reader, [])
    if len(set(header)) < len(header) or "" in header:
        raise UserError(f"{path}: the first line must name each column once; it is `{','.join(header)}`.")
    for values in reader:
        where = f"line {reader.line_num}"
        if values and len(values) != len(header):
            yield where, f"{len(values)} values where the first line names {len(header)} columns"
        elif values:
            yield where, dict(zip(header, values, strict=True))


def _jsonl(file: Iterable[str]) -> Iterator[tuple[str, Row | str]]:
    for number, line in enumerate(file, 1):
        try:
            row = json.loads(line, parse_constant=_constant) if line.strip() else {}
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and row:
            yield f"line {number}", {name: _of_json(value) for name, value in row.items()}
        elif row != {}:
            yield f"line {number}", "not a JSON object"


def _constant(name: str) -> float | None:
    """What is no JSON and yet written: of a table with gaps, `NaN` is a gap."""
    return None if name == "NaN" else float(name)


def _of_json(value: Any) -> Any:
    """A value as text, a list of texts as one a line; of other lists and of objects no more than that they are such."""
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return "\n".join(" ".join(text.split()) for text in value)
    if isinstance(value, list | dict):
        return type(value)()
    return "" if value is None else str(value)
