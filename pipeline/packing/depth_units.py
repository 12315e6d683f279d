"""Checks the unit of depth maps by their median depth and by their 10th percentile (the near part)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from pipeline.packing.scan import MOST_FAULTS, Scan

NEAR, FAR = 0.2, 10.0
"""Metres. If the median depth of indoor recordings is outside this range, their unit is probably off by 10 or more."""

EXACT = 0.15
"""Tolerance for the ratio of two units in decades, per power of ten, since the maps show different scenes."""

FEW = 3
"""Fewer maps than this do not count as a second unit, since they may show another place."""

WIDE = 20.0
"""Nine of ten maps of one kind of place are within this factor of each other."""


class Depths:
    """The depth maps of all shards: counts by median depth and by near part, in whole millimetres, and the extremes.

    Noise at large depths shifts the median of a map by a power of ten, but not its near part; an object that is close
    in some maps shifts only the near part. Only another unit shifts both.
    """

    def __init__(self) -> None:
        self.medians: Counter[int] = Counter()
        self.near: Counter[int] = Counter()
        self.nearest: list[tuple[int, str]] = []
        self.farthest: list[tuple[int, str]] = []
        self.saturated = self.coarse = 0

    def add(self, found: Scan) -> None:
        """Add the scan of a shard."""
        self.medians += found.depths
        self.near += found.near
        self.saturated += found.saturated
        self.coarse += found.coarse
        for ends, end in zip((self.nearest, self.farthest), found.ends, strict=False):
            ends.append((end[0], f"{found.job.shard.file}: {end[1]}"))

    def fact(self) -> str:
        """The median and spread of the median depths, as text."""
        low, middle, high = self._metres(5, 50, 95)
        return f"median {middle:.2f} m, nine of ten maps {low:.2f} to {high:.2f} m"

    def notes(self) -> Iterator[str]:
        """Observations that need not be errors: unusual depths, mixed scales, coarse steps, full-scale values."""
        if not self.medians:
            return
        low, middle, high = self._metres(5, 50, 95)
        if not NEAR <= middle <= FAR:
            yield (
                f"the median depth is {middle:.3g} m: plausible for close-ups or streets; otherwise, the unit is "
                "wrong. It must be millimetres (.png) or metres (.npy). Convert the maps and pack again, or set "
                "`scale` of the modality depth to the number of metres per unit"
            )
        if high > WIDE * low:
            yield (
                f"the median depth of nine of ten maps is {low:.3g} to {high:.3g} m: plausible for very different "
                "places; otherwise, the maps have different units"
            )
        if 2 * self.coarse > self.medians.total():
            yield (
                f"in {self.coarse} of {self.medians.total()} depth maps, all values are multiples of 10 mm: plausible "
                "for a sensor with such steps; otherwise, they were multiplied, and the unit is wrong"
            )
        if self.saturated:
            yield (
                f"in {self.saturated} depth maps, over 1 % of the values are 65535: if this means that there is no "
                "depth, replace it by 0 and pack again"
            )

    def faults(self) -> Iterator[str]:
        """Two units in one dataset, with an example from each shard that has maps in the rarer unit."""
        found, near_part = _two_units(_sorted(self.medians)), _two_units(_sorted(self.near))
        if found is None or near_part is None or found[2] != near_part[2]:
            return
        near, far, factor, between = found
        fewer = self.farthest if far <= near else self.nearest
        named = [(depth, where) for depth, where in fewer if (depth > between) is (far <= near)]
        yield (
            f"depth: the values of {far} maps are about {factor} times as large as those of the other {near}: two "
            "units in one dataset; convert the wrong ones to millimetres (.png) or metres (.npy) and pack again. The "
            f"rarer unit is in {len(named)} shards"
        )
        for depth, where in named[:MOST_FAULTS]:
            yield f"{where}: the median depth is {depth / 1000:.3g} m"

    def _metres(self, *percentiles: float) -> list[float]:
        at = np.percentile(_sorted(self.medians), percentiles, method="lower")
        return [float(depth) / 1000 for depth in at]


def _sorted(counts: Counter[int]) -> np.ndarray:
    depths = sorted(counts)
    return np.repeat(depths, [counts[depth] for depth in depths])


def _two_units(depths: np.ndarray) -> tuple[int, int, int, float] | None:
    """Number of maps below and above a gap in the depths, the factor between them, and the gap in millimetres."""
    logs = np.log10(np.maximum(depths, 1))
    half = 0.1 if len(logs) >= 300 else 0.2  # decades; with few maps, gaps occur by chance
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
