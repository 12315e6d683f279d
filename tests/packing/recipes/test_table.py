"""Tables come back cell by cell, whoever wrote them; what is ambiguous is refused with its line."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest

from pipeline.common.errors import UserError
from pipeline.packing.recipes.table import read_table

PIECES = [
    "a",
    "b c",
    '"',
    ",",
    ";",
    "|",
    "\t",
    "\n",
    "\r\n",
    "\u2028",
    "\x85",
    "é",
    " ",
    "1.0",
    "nan",
    "#",
    "'",
    "\\",
]
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16"]


def random_cell(rng: random.Random) -> str:
    return "x" + "".join(rng.choice(PIECES) for _ in range(rng.randrange(6))) if rng.random() < 0.9 else ""


def one_line(cell: str) -> str:
    """The lines of a cell, joined by a space each."""
    first, *others = cell.splitlines() or [""]
    lines = [first.rstrip(" \t") if others else first, *(line.strip() for line in others)]
    return " ".join(line for line in lines if line)


def same(read: str, written: str) -> bool:
    return read.rstrip() == one_line(written).rstrip()


@pytest.mark.parametrize("block", range(5))
def test_cells_come_back_as_they_were_written(tmp_path: Path, block: int) -> None:
    for seed in range(100 * block, 100 * block + 100):
        rng = random.Random(seed)
        columns = ["file", "caption", "label"][: rng.randrange(2, 4)]
        cells = [[f"{n}.jpg", *(random_cell(rng) for _ in columns[1:])] for n in range(rng.randrange(1, 6))]
        path = tmp_path / f"{seed}.{rng.choice(['csv', 'tsv', 'jsonl'])}"
        if path.suffix == ".jsonl":
            escaped = rng.random() < 0.5
            lines = [json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=escaped) for row in cells]
            path.write_text("\n".join(lines) + "\n", newline="")
        else:
            index = rng.random() < 0.3  # as pandas writes it
            with path.open("w", encoding=rng.choice(ENCODINGS), newline="") as file:
                writer = csv.writer(
                    file,
                    delimiter="\t" if path.suffix == ".tsv" else rng.choice(",;|"),
                    quoting=rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
                    lineterminator=rng.choice(["\n", "\r\n"]),
                )
                writer.writerow(["", *columns] if index else columns)
                writer.writerows([[number, *row] if index else row for number, row in enumerate(cells)])
        rows, broken = read_table(path)
        assert not broken, seed
        assert len(rows) == len(cells), seed
        for (_, row), written in zip(rows, cells, strict=True):
            assert list(row) == columns, seed
            assert all(same(str(row[name]), cell) for name, cell in zip(columns, written, strict=True)), seed


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ('a.jpg,"by night\nb.jpg,"by day\nc.jpg,x', 2),  # the second mark would close the first
        ('a.jpg,x\nb.jpg,"by day\nc.jpg,x\n', 3),  # never closed
        ('a.jpg,"big" dog\n', 2),
    ],
)
def test_a_quotation_mark_that_is_not_closed_is_named(tmp_path: Path, rows: str, line: int) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"file,caption\n{rows}\n")
    with pytest.raises(UserError, match=rf"t\.csv: line {line}: .* must end with one"):
        read_table(path)


def test_joined_lines_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"a": "one\ntwo", "b": "three", "c": ["four\nfive", "six"]}) + "\n")
    rows, _ = read_table(path)
    assert rows[0][1] == {"a": "one two", "b": "three", "c": "four five\nsix"}
    assert "line breaks in 1 cells" in caplog.text


def test_the_header_of_a_tsv_may_have_commas(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text("file\tcaption, in English, short\na.jpg\tx\n")
    rows, _ = read_table(path)
    assert rows[0][1] == {"file": "a.jpg", "caption, in English, short": "x"}
