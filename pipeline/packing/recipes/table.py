"""CSV and JSONL tables, and templates that build paths and names from columns."""

from __future__ import annotations

import codecs
import csv
import json
import logging
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from pipeline.common.errors import UserError
from pipeline.common.file_names import nfc
from pipeline.common.spill import Spilled
from pipeline.packing.recipes.plan import Refusal

log = logging.getLogger(__name__)

Row = Mapping[str, Any]
"""Column -> text, or an empty list or object instead: unused columns of JSONL may contain anything."""
Rows = Spilled[tuple[str, Row]]

BREAKS = re.compile(r"[ \t]*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")
"""A line break as defined by `str.splitlines`, with the white space around it."""


class Template:
    """A text with columns in braces, such as `hand_rgb/{id}.jpg`. A bare column name is short for `{column}`.

    Braces may contain only complete column names, without Python's attributes, indices and formats.

    Args:
        text: The template.
        columns: Columns of the table.
        what: Purpose of the template, for messages.

    Raises:
        UserError: The template contains no column or an unknown one. The message lists the columns.
    """

    def __init__(self, text: str, columns: Sequence[str], what: str) -> None:
        text = nfc(text)
        try:
            parts = [("", text, "", None)] if text in columns else list(string.Formatter().parse(text))
        except ValueError as error:
            raise UserError(f"{what}: `{text}`: {error}.") from None
        self.parts = [(literal, name) for literal, name, _, _ in parts]
        wrong = [name for _, name, form, conversion in parts if form or conversion or name not in (None, *columns)]
        if wrong:
            raise UserError(f"{what}: `{text}`: no column `{wrong[0]}`; the columns are {', '.join(columns)}.")
        if all(name is None for _, name in self.parts):
            raise UserError(
                f"{what}: `{text}` is neither a column nor contains one in braces; the columns are "
                f"{', '.join(columns)}."
            )

    @property
    def names(self) -> list[str]:
        """The columns in the template."""
        return [name for _, name in self.parts if name is not None]

    def __call__(self, row: Row) -> str:
        """Fill in the values of a row; empty if any of them is empty. Raises ValueError like `cell`."""
        values = [cell(row, name) if name is not None else None for _, name in self.parts]
        if "" in values:
            return ""
        return "".join(literal + (value or "") for (literal, _), value in zip(self.parts, values, strict=True))


def cell(row: Row, column: str) -> str:
    """The text of a column in a row; empty if there is no value.

    Raises:
        ValueError: The value is a list or an object.
    """
    value = row.get(column, "")
    if isinstance(value, str):
        return value
    kind = "a list of other values than text" if isinstance(value, list) else "an object"
    raise ValueError(f"column `{column}` contains {kind}; expected text, a number or a list of texts")


def read_table(path: Path) -> tuple[Rows, list[Refusal]]:
    """Read all rows as `(where, {column: value})`, and the invalid lines.

    Args:
        path: A CSV file with a header, or a JSONL file.

    Raises:
        UserError: The file cannot be read or has no rows.
    """
    rows, broken, joined = spilled_rows(), [], _Joined()
    try:
        with path.open(encoding=_encoding(path), newline="") as file:
            json_lines = path.suffix.lower() in (".jsonl", ".ndjson")
            for where, row in _jsonl(file, joined) if json_lines else _csv(path, file, joined):
                if isinstance(row, str):
                    broken.append(Refusal("", where, row))
                else:
                    rows.append((where, row))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}. Use a CSV or JSONL file.") from None
    except UnicodeError as error:
        raise UserError(f"{path}: not a table in UTF-8: {error}. Save it as UTF-8.") from None
    if not rows:
        raise UserError(f"{path}: the table has no rows. Use a CSV file with a header, or JSONL.")
    if joined.cells:
        log.info(f"{path}: line breaks in {joined.cells} cells are read as spaces, since each cell is one caption")
    return rows, broken


def spilled_rows(rows: Iterable[tuple[str, Row]] = ()) -> Rows:
    """Store rows on disk, so memory does not grow with their number."""
    return Spilled(lambda where, row: (where, row), rows)


def _encoding(path: Path) -> str:
    """UTF-16 if the file starts with its byte order mark, else UTF-8, with or without a mark."""
    with path.open("rb") as file:
        return "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _csv(path: Path, file: TextIO, joined: _Joined) -> Iterator[tuple[str, Row | str]]:
    first = file.readline()
    file.seek(0)
    # Strict: otherwise, an unclosed quotation mark would absorb the following rows into its cell.
    reader = csv.reader(file, delimiter=_separator(path, first), strict=True)
    begun = 1
    try:
        header = next(reader, [])
        unnamed = bool(header) and header[0] == ""  # the index that pandas writes
        names = list(map(nfc, header[unnamed:]))
        if len(set(names)) < len(names) or "" in names:
            raise UserError(f"{path}: the first line must contain unique column names; it is `{','.join(header)}`.")
        begun = reader.line_num + 1
        for values in reader:
            where, begun = f"line {reader.line_num}", reader.line_num + 1
            if values and len(values) != len(header):
                yield where, f"{len(values)} values, but the first line has {len(header)} columns"
            elif values:
                yield where, dict(zip(names, map(joined, values[unnamed:]), strict=True))
    except csv.Error as error:
        raise UserError(
            f"{path}: line {begun}: {error}. A cell that starts with a quotation mark must end with one, with "
            "quotation marks inside it doubled. Write the table with a CSV library, or as JSONL."
        ) from None


def _separator(path: Path, header: str) -> str:
    """A tab in `.tsv`; else the separator that is most frequent in the header outside quotation marks, or a comma."""
    plain = "".join(header.split('"')[::2])
    return "\t" if path.suffix.lower() == ".tsv" else max(",\t;|", key=plain.count)


class _Joined:
    """Converts a cell to one line, since captions are stored one per line, and counts the changed cells."""

    def __init__(self) -> None:
        self.cells = 0

    def __call__(self, cell: str) -> str:
        line = BREAKS.sub(" ", cell)
        self.cells += line != cell
        return line


def _jsonl(file: Iterable[str], joined: _Joined) -> Iterator[tuple[str, Row | str]]:
    for number, line in enumerate(file, 1):
        try:
            row = json.loads(line, parse_constant=_constant) if line.strip() else {}
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and row:
            yield f"line {number}", {nfc(name): _of_json(value, joined) for name, value in row.items()}
        elif row != {}:
            yield f"line {number}", "not a JSON object"


def _constant(name: str) -> float | None:
    """Convert constants that are not valid JSON: `NaN` is a missing value."""
    return None if name == "NaN" else float(name)


def _of_json(value: Any, joined: _Joined) -> Any:
    """Convert a value to text, and a list of texts to one per line. Other lists and objects become empty ones."""
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return "\n".join(" ".join(text.split()) for text in value)
    if isinstance(value, list | dict):
        return type(value)()
    return "" if value is None else joined(str(value))
