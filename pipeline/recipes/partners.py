"""Pairs by class: any photo of a three with any recording of a three, where the two were never recorded together."""

from __future__ import annotations

import random
from array import array
from collections import defaultdict
from pathlib import Path

from pipeline.errors import UserError
from pipeline.recipes import Refusal
from pipeline.recipes.table import Row, Rows, cell, read_table, spilled_rows

PREFIX = "partner."
"""Begins the names that the second table's columns get beside the first one's."""


def with_partners(rows: Rows, partners: Path, label: str, split: str, seed: int) -> tuple[Rows, list[Refusal]]:
    """Every row with the columns of a partner of its class and split, and the rows that found none.

    label, split: columns of both tables; a partner never leaves its split, so what is heard in training is not heard in
    the test. Within a class and split partners are dealt out in an order that the seed fixes, each about equally often.
    Raises UserError for a second table that cannot be read or lacks one of the columns.
    """
    others, broken = read_table(partners)
    known = {column for _, row in others for column in row}
    for column in (label, split):
        if column not in known:
            raise UserError(
                f"{partners}: no column `{column}`, which pairs need in both tables; it has {sorted(known)}."
            )
    decks: dict[tuple[str, str], array[int]] = defaultdict(lambda: array("I"))
    for number, (where, row) in enumerate(others):
        try:
            decks[_place(row, label, split)].append(number)
        except ValueError as error:  # noqa: PERF203
            broken.append(Refusal("", where, str(error)))
    hands: dict[tuple[str, str], array[int]] = defaultdict(lambda: array("I"))
    dealt = {place: random.Random(f"{seed}/{place}") for place in decks}
    paired = spilled_rows()
    refused = [Refusal("", f"{partners} {fault.file}", fault.reason) for fault in broken]
    for where, row in rows:
        try:
            place = _place(row, label, split)
        except ValueError as error:
            refused.append(Refusal("", where, str(error)))
            continue
        if not place[0] or place not in decks:
            what = f"class `{place[0]}` in split `{place[1]}`" if place[0] else "a row without a class"
            refused.append(Refusal("", where, f"{what} has no partner in {partners.name}"))
            continue
        if not hands[place]:
            count = len(decks[place])
            hands[place] = array("I", (decks[place][n] for n in dealt[place].sample(range(count), count)))
        _, partner = others[hands[place].pop()]
        paired.append((where, {**row, **{f"{PREFIX}{column}": value for column, value in partner.items()}}))
    return paired, refused


def _place(row: Row, label: str, split: str) -> tuple[str, str]:
    """A row's class and split. ValueError where one of the columns holds no text."""
    return cell(row, label).strip(), cell(row, split).strip()
