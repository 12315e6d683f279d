"""HTML tables that the page's script can sort."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

TableCell = str | tuple[float, str]
"""Text, or a number and its text."""


def table(head: Sequence[str], rows: Sequence[Sequence[TableCell]], code: bool = False) -> str:
    """Make a sortable table. Columns of numbers are right-aligned.

    Args:
        head: Headings.
        rows: Cells.
        code: Format the first column as code.
    """
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


def _cell(cell: TableCell) -> str:
    if isinstance(cell, tuple):
        return f'<data value="{float(cell[0])!r}">{escape(cell[1])}</data>'
    return escape(cell)
