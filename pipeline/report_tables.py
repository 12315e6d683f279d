"""Tables as HTML that the page's script sorts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

Cell = str | tuple[float, str]
"""Plain text, or a number and how it reads."""


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]], code: bool = False) -> str:
    """A sortable table of plain texts and numbers; columns of numbers stand right. code: the first column is code."""
    numbers = [any(isinstance(row[i], tuple) for row in rows) for i in range(len(head))]
    right = [' class="number"' if number else "" for number in numbers]
    names = "".join(f"<th{kind}>{escape(name)}</th>" for name, kind in zip(head, right, strict=True))
    lines = []
    for row in rows:
        cells = [_cell(cell) for cell in row]
        if code:
            cells[0] = f"<code>{cells[0]}</code>"
        lines.append("".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(cells, right, strict=True)))
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<table class="sortable"><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>'


def _cell(cell: Cell) -> str:
    if isinstance(cell, tuple):
        return f'<data value="{float(cell[0])!r}">{escape(cell[1])}</data>'
    return escape(cell)
