"""Pairs separately recorded samples by class, e.g. any photo of the digit 3 with any recording of a spoken 3."""

from __future__ import annotations

import random
from array import array
from collections import defaultdict
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.packing.recipes.plan import Refusal
from pipeline.packing.recipes.table import Row, Rows, cell, read_table, spilled_rows

PREFIX = "partner."
"""Prefix of the columns of the second table."""


def with_partners(rows: Rows, partners: Path, label: str, split: str, seed: int) -> tuple[Rows, list[Refusal]]:
    """Add to every row the columns of a partner with the same class and split.

    Partners stay in their split, so no partner is used in both training and test. Within a class and split, partners
    are used in a seeded random order, each about equally often.

    Args:
        rows: Rows of the first table.
        partners: The second table.
        label: Column of the class in both tables.
        split: Column of the split in both tables.
        seed: Random seed for the order.

    Returns:
        The rows with partners, and the rows without a partner.

    Raises:
        UserError: The second table cannot be read or lacks a column.
    """
    others, broken = read_table(partners)
    known = {column for _, row in others for column in row}
    for column in (label, split):
        if column not in known:
            raise UserError(
                f"{partners}: there is no column `{column}`, which both tables must have; its columns are "
                f"{sorted(known)}."
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
            what = f"class `{place[0]}` in split `{place[1]}`" if place[0] else "the row has no class and"
            refused.append(Refusal("", where, f"{what} has no partner in {partners.name}"))
            continue
        if not hands[place]:
            count = len(decks[place])
            hands[place] = array("I", (decks[place][n] for n in dealt[place].sample(range(count), count)))
        _, partner = others[hands[place].pop()]
        paired.append((where, {**row, **{f"{PREFIX}{column}": value for column, value in partner.items()}}))
    return paired, refused


def _place(row: Row, label: str, split: str) -> tuple[str, str]:
    """Class and split of a row. Raises ValueError if a column is not text."""
    return cell(row, label).strip(), cell(row, split).strip()
