"""Checks the unit of depth maps by their median depth and by their near part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from pipeline.packing.scan import MOST_FAULTS, Scan

NEAR, FAR = 0.2, 10.0
"""Metres. Indoor recordings with a median depth outside this range probably have a unit that is off by 10 or more."""

EXACT = 0.15
"""Tolerance in decades, per power of ten, for the ratio of two units, since their maps show different scenes."""

FEW = 3
"""Fewer maps than this are not a second unit: they may show another place."""

WIDE = 20.0
"""Nine of ten maps of one kind of place lie within this factor."""


class Depths:
    """The depth maps of all shards: counts by median depth and by near part, in whole millimetres, and the extremes.

    Far noise moves the median of a map by a power of ten, but not its near part; a thing that is close in some maps
    moves the near part alone. Only another unit moves both.
    """

    def __init__(self) -> None:
        self.medians: Counter[int] = Counter()
        self.near: Counter[int] = Counter()
        self.nearest: list[tuple[int, str]] = []
        self.farthest: list[tuple[int, str]] = []
        self.saturated = self.coarse = 0

    def add(self, found: Scan) -> None:
        """Add what was found in a shard."""
        self.medians += found.depths
        self.near += found.near
        self.saturated += found.saturated
        self.coarse += found.coarse
        for ends, end in zip((self.nearest, self.farthest), found.ends, strict=False):
            ends.append((end[0], f"{found.job.shard.file}: {end[1]}"))

    def fact(self) -> str:
        """Median and spread of the median depths, as text."""
        low, middle, high = self._metres(5, 50, 95)
        return f"median {middle:.2f} m, nine of ten maps {low:.2f} to {high:.2f} m"

    def notes(self) -> Iterator[str]:
        """Observations that may be correct: unusual depths, mixed scales, coarse steps, full scale as a reading."""
        if not self.medians:
            return
        low, middle, high = self._metres(5, 50, 95)
        if not NEAR <= middle <= FAR:
            yield (
                f"the median depth is {middle:.3g} m: plausible for close-ups or streets, else the unit is wrong. It "
                "must be millimetres (.png) or metres (.npy). Convert it and pack again, or set `scale` of the "
                "modality depth to the metres per unit"
            )
        if high > WIDE * low:
            yield (
                f"the median depth of nine of ten maps is {low:.3g} to {high:.3g} m: plausible for very different "
                "places, else maps with several units are mixed"
            )
        if 2 * self.coarse > self.medians.total():
            yield (
                f"in {self.coarse} of {self.medians.total()} depth maps all readings are multiples of 10 mm: plausible "
                "for a sensor with such steps, else they were multiplied, and the unit is wrong"
            )
        if self.saturated:
            yield (
                f"{self.saturated} depth maps have 65535 in over 1 % of their readings: if it means no reading, "
                "replace it by 0 and pack again"
            )

    def faults(self) -> Iterator[str]:
        """Two units in one dataset, with a sample of each shard that has maps in the rarer unit."""
        found, near_part = _two_units(_sorted(self.medians)), _two_units(_sorted(self.near))
        if found is None or near_part is None or found[2] != near_part[2]:
            return
        near, far, factor, between = found
        fewer = self.farthest if far <= near else self.nearest
        named = [(depth, where) for depth, where in fewer if (depth > between) is (far <= near)]
        yield (
            f"depth: {far} maps have readings about {factor} times as large as the other {near}: two units in one "
            "set; convert the wrong ones to millimetres (.png) or metres (.npy) and pack again. The rarer unit is in "
            f"{len(named)} shards"
        )
        for depth, where in named[:MOST_FAULTS]:
            yield f"{where}: its median depth is {depth / 1000:.3g} m"

    def _metres(self, *percentiles: float) -> list[float]:
        at = np.percentile(_sorted(self.medians), percentiles, method="lower")
        return [float(depth) / 1000 for depth in at]


def _sorted(counts: Counter[int]) -> np.ndarray:
    depths = sorted(counts)
    return np.repeat(depths, [counts[depth] for depth in depths])


def _two_units(depths: np.ndarray) -> tuple[int, int, int, float] | None:
    """Number of maps below and above a gap in the depths, the factor between them, and the gap in millimetres."""
    logs = np.log10(np.maximum(depths, 1))
    half = 0.1 if len(logs) >= 300 else 0.2  # decades; few maps have gaps by chance
    found = []
    for gap in np.arange(logs[0], logs[-1], half / 5) if len(logs) else ():
        first, middle, last = np.searchsorted(logs, [gap - half, gap, gap + half]).tolist()
        if min(first, len(logs) - last) < FEW:
            continue
        low, high = np.median(logs[:middle]), np.median(logs[middle:])
        power = round(high - low)
        peaks = np.diff(np.searchsorted(logs, [[low - half, low + half], [high - half, high + half]]))
        if abs(high - low - power) < EXACT * power and last - first <= peaks.min() / 5:
            rank = (last - first, abs(2 * gap - low - high))  # the emptiest gap, then the most central one
            found.append((rank, (middle, len(logs) - middle, 10**power, float(10**gap))))
    return min(found)[1] if found else None
