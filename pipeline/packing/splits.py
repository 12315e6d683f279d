"""Assigns samples to splits: groups are kept together, and classes are balanced."""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from sqlite3 import Connection
from typing import NamedTuple, Protocol

from pipeline.common.errors import UserError
from pipeline.common.spill import blob, scratch, unblob

SPLITS = ("train", "val", "test")
DEFAULT = {"train": 0.8, "test": 0.2}
FAR = 0.05
"""A split whose fraction of the samples differs by more than this from the requested one deserves a warning."""


class Grouped(Protocol):
    """The properties of a sample that the split depends on."""

    @property
    def key(self) -> str:
        """The key of the sample."""

    @property
    def group(self) -> str:
        """The group, which stays in one split."""

    @property
    def label(self) -> int | None:
        """Class index; None if unknown."""

    @property
    def split(self) -> str | None:
        """The split set by the source; None if it sets none."""


class Assignment(NamedTuple):
    """The result of `assign`.

    Attributes:
        places: The split of each sample, as an index in `SPLITS`.
        groups: Split -> number of its groups.
    """

    places: bytes
    groups: dict[str, int]


def assign(samples: Iterable[Grouped], fractions: Mapping[str, float], seed: int) -> Assignment:
    """Assign every group to a split: the one set by the source, or else by fractions of the samples.

    Frames of one clip are near duplicates, so groups are never divided. They are processed in random order, large
    groups first, and each goes to the split that most lacks its classes. A class with few groups is in as many splits
    as it has groups, the largest splits first.

    Args:
        samples: The samples.
        fractions: Split -> fraction of the samples.
        seed: Random seed of the order.

    Raises:
        UserError: The fractions are invalid, samples of a group have different splits, or a split is empty.
    """
    db = scratch(
        "samples (number INTEGER PRIMARY KEY, name BLOB, key BLOB, label INTEGER, split TEXT)",
        "groups (number INTEGER PRIMARY KEY, name BLOB UNIQUE, size INTEGER, split TEXT, place INTEGER)",
    )
    db.create_function("bits", 1, int.bit_length, deterministic=True)
    rows = (
        (n, blob(s.group), blob(s.key), -1 if s.label is None else s.label, s.split or None)
        for n, s in enumerate(samples)
    )
    db.executemany("INSERT INTO samples VALUES (?, ?, ?, ?, ?)", rows)
    _check_given(db)
    db.execute("INSERT INTO groups SELECT NULL, name, COUNT(*), MAX(split), 0 FROM samples GROUP BY name ORDER BY name")
    (groups,) = db.execute("SELECT COUNT(*) FROM groups").fetchone()
    placed = bytearray(1 + groups)  # group -> index of its split
    for group, split in db.execute("SELECT number, split FROM groups WHERE split IS NOT NULL"):
        placed[group] = SPLITS.index(split)
    if db.execute("SELECT 1 FROM groups WHERE split IS NULL").fetchone():
        for group, split in _by_fractions(db, _checked(fractions), seed):
            placed[group] = SPLITS.index(split)
    own = "SELECT groups.number FROM samples JOIN groups USING (name) ORDER BY samples.number"
    places = bytes(placed[group] for (group,) in db.execute(own))
    counts = Counter(placed[1:])
    return Assignment(places, {split: counts[n] for n, split in enumerate(SPLITS) if counts[n]})


def _check_given(db: Connection) -> None:
    """Raise UserError for the first sample whose split differs from that of its group."""
    first = (
        "SELECT *, FIRST_VALUE(split) OVER (PARTITION BY name ORDER BY number) AS first FROM samples WHERE split > ''"
    )
    query = f"SELECT name, first, key, split FROM ({first}) WHERE split != first ORDER BY number LIMIT 1"
    for name, first, key, split in db.execute(query):
        raise UserError(
            f"group `{unblob(name)}` has samples in `{first}` and in `{split}` (e.g. key {unblob(key)}), so training "
            "data would leak into another split. Put the whole group in one split, or choose other groups."
        )


def rule(fractions: Mapping[str, float], seed: int) -> str:
    """Describe the split for `dataset.json`."""
    shares = ", ".join(f"{split} {share:g}" for split, share in _checked(fractions).items())
    return f"whole groups, seed {seed}: {shares} of the samples, classes near their share"


def outcome(groups: Mapping[str, int], samples: Mapping[str, int], fractions: Mapping[str, float]) -> str:
    """Describe the groups of each split, and the fraction of the samples in each held-out split.

    Args:
        groups: Split -> number of groups.
        samples: Split -> number of samples.
        fractions: Split -> requested fraction of the samples; empty if the source sets the splits.
    """
    total = sum(groups.values())
    text = f"{total} group{'' if total == 1 else 's'}: {', '.join(f'{n} {split}' for split, n in groups.items())}"
    for split in groups:
        if split != "train":
            asked = f" (--{split} {fractions[split]:g})" if split in fractions else ""
            text += f"; {100 * _share(samples, split):.0f} % of the samples are in {split}{asked}"
    return text


def deviations(samples: Mapping[str, int], fractions: Mapping[str, float]) -> list[str]:
    """Describe each held-out split whose fraction of the samples is far from the requested one.

    Args:
        samples: Split -> number of samples.
        fractions: Split -> requested fraction of the samples; empty if the source sets the splits.
    """
    return [
        f"{split} has {100 * own:.0f} % of the samples instead of {100 * share:.3g} %"
        for split, share in fractions.items()
        if split != "train" and abs((own := _share(samples, split)) - share) > FAR
    ]


def _share(samples: Mapping[str, int], split: str) -> float:
    return samples.get(split, 0) / max(sum(samples.values()), 1)


def _checked(fractions: Mapping[str, float]) -> dict[str, float]:
    """Validate fractions; return those above 0, largest first."""
    if unknown := sorted(set(fractions) - set(SPLITS)):
        raise UserError(f"split `{unknown[0]}` is unknown; choose from {', '.join(SPLITS)}.")
    if min(fractions.values(), default=-1) < 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise UserError(f"split fractions {dict(fractions)}: each must be 0 or more, and their sum must be 1.")
    return {
        name: fractions[name]
        for name in sorted(SPLITS, key=lambda name: -fractions.get(name, 0))
        if fractions.get(name)
    }


def _by_fractions(db: Connection, fractions: Mapping[str, float], seed: int) -> Iterator[tuple[int, str]]:
    """Yield the number and split of every group whose split the source does not set."""
    rest = "samples JOIN groups USING (name) WHERE groups.split IS NULL"
    total = Counter(dict(db.execute(f"SELECT label, COUNT(*) FROM {rest} GROUP BY label")))
    order = array("I", (n for (n,) in db.execute("SELECT number FROM groups WHERE split IS NULL ORDER BY number")))
    random.Random(seed).shuffle(order)
    db.executemany("UPDATE groups SET place = ? WHERE number = ?", enumerate(order))
    # Sizes are compared by powers of two: large groups come first, and the seed orders groups of similar size.
    counted = db.execute(
        f"SELECT groups.number, label, COUNT(*) FROM {rest} GROUP BY groups.number, label "
        "ORDER BY bits(size) DESC, place, MIN(samples.number)"
    )
    have: dict[str, Counter[int]] = {split: Counter() for split in fractions}
    for group, found in groupby(counted, key=itemgetter(0)):
        counts = Counter({label: count for _, label, count in found})

        def need(split: str, counts: Counter[int] = counts) -> float:
            """How far the group's classes are below their target fraction: 1 if the split has none of them."""
            filled = sum(n * have[split][c] / (fractions[split] * total[c]) for c, n in counts.items())
            return 1 - filled / counts.total()

        split = max(fractions, key=need)  # ties go to the largest split, which is first
        have[split] += counts
        yield group, split
    if empty := [split for split in fractions if not have[split]]:
        raise UserError(
            f"split `{empty[0]}` would be empty: {len(order)} groups of {len(total)} classes cannot be divided into "
            f"{', '.join(fractions)}. Use smaller groups or other fractions, or set the split of each sample."
        )
