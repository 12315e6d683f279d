"""Which samples train and which test: whole groups only, each class near its share of every split."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Protocol

from pipeline.errors import UserError

SPLITS = ("train", "val", "test")
DEFAULT = {"train": 0.8, "test": 0.2}


class Grouped(Protocol):
    """What a split needs to know of a sample. label: class index, None if unlabelled. split: None if not given."""

    @property
    def key(self) -> str:
        """The sample's name."""

    @property
    def group(self) -> str:
        """What stays in one split."""

    @property
    def label(self) -> int | None:
        """The class's index, None where unknown."""

    @property
    def split(self) -> str | None:
        """The split that the source gives it, None where it gives none."""


def assign(samples: Sequence[Grouped], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """Give every group a split: the samples' own where they have one, else by fractions of the samples.

    Frames of one clip are near duplicates, so a group is never divided. Groups come in an order shuffled by `seed`,
    the large before the small; each goes where its classes are shortest of their share. So a class
    reaches as many splits as it has groups, the largest split first.

    Returns group -> split. Raises UserError for bad fractions, for a group whose samples name two splits, and when
    a split would stay empty.
    """
    given: dict[str, str] = {}
    for sample in samples:
        if sample.split and given.setdefault(sample.group, sample.split) != sample.split:
            raise UserError(
                f"group `{sample.group}` has samples in `{given[sample.group]}` and, key {sample.key}, in "
                f"`{sample.split}`: training would leak into the test. Correct the splits, or choose other groups."
            )
    rest = [sample for sample in samples if sample.group not in given]
    return given | _by_fractions(rest, _checked(fractions), seed) if rest else given


def rule(fractions: Mapping[str, float], seed: int) -> str:
    """The split in words, for `dataset.json`."""
    shares = ", ".join(f"{split} {share:g}" for split, share in _checked(fractions).items())
    return f"whole groups, seed {seed}: {shares} of the samples, classes near their share"


def _checked(fractions: Mapping[str, float]) -> dict[str, float]:
    """Fractions above 0, largest first."""
    if unknown := sorted(set(fractions) - set(SPLITS)):
        raise UserError(f"split `{unknown[0]}` is unknown; there are {', '.join(SPLITS)}.")
    if min(fractions.values(), default=-1) < 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise UserError(f"split fractions {dict(fractions)}: each is 0 or more and together they are 1.")
    return {
        name: fractions[name]
        for name in sorted(SPLITS, key=lambda name: -fractions.get(name, 0))
        if fractions.get(name)
    }


def _by_fractions(samples: Sequence[Grouped], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    groups: dict[str, Counter[int]] = defaultdict(Counter)
    for sample in samples:
        groups[sample.group][-1 if sample.label is None else sample.label] += 1
    total: Counter[int] = sum(groups.values(), Counter())
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    # By powers of two: an outsized group is placed while there is room, and the seed still decides among like ones.
    order.sort(key=lambda group: -groups[group].total().bit_length())

    have: dict[str, Counter[int]] = {split: Counter() for split in fractions}
    placed: dict[str, str] = {}
    for group in order:
        counts = groups[group]

        def need(split: str, counts: Counter[int] = counts) -> float:
            """How short of their share the group's classes are, in [.., 1]; 1 where the split has none of them."""
            filled = sum(n * have[split][c] / (fractions[split] * total[c]) for c, n in counts.items())
            return 1 - filled / counts.total()

        placed[group] = max(fractions, key=need)  # the first of equals, and the largest split is first
        have[placed[group]] += counts
    if empty := [split for split in fractions if not have[split]]:
        raise UserError(
            f"split `{empty[0]}` would stay empty: {len(groups)} groups of {len(total)} classes cannot be divided into "
            f"{', '.join(fractions)}. Choose finer groups, other fractions, or give each sample its split."
        )
    return placed
