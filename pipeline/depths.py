"""What the median readings of a set's depth maps say of its unit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from pipeline.scan import MOST_FAULTS, Scan

NEAR, FAR = 0.2, 10.0
"""Metres. Indoor recordings whose median depth is outside are probably in a unit 10 times or more off."""

EXACT = 0.15
"""Decades, for each power of ten, by which the middles of two units' maps may miss it: they show different things."""

FEW = 3
"""Maps, that are no second unit: one or two may be of another place."""

WIDE = 20.0
"""Nine of ten maps of one place or kind of place lie within so large a factor."""


class Depths:
    """The depth maps of all shards: how many of each median reading in whole millimetres, and each shard's extremes."""

    def __init__(self) -> None:
        self.medians: Counter[int] = Counter()
        self.nearest: list[tuple[int, str]] = []
        self.farthest: list[tuple[int, str]] = []
        self.saturated = self.coarse = 0

    def add(self, found: Scan) -> None:
        """Count what was found in a shard."""
        self.medians += found.depths
        self.saturated += found.saturated
        self.coarse += found.coarse
        for ends, end in zip((self.nearest, self.farthest), found.ends, strict=False):
            ends.append((end[0], f"{found.job.shard.file}: {end[1]}"))

    def fact(self) -> str:
        """Median and spread of the maps' medians, in words."""
        low, middle, high = self._metres(5, 50, 95)
        return f"median {middle:.2f} m, nine of ten maps {low:.2f} to {high:.2f} m"

    def notes(self) -> Iterator[str]:
        """What is odd and may be right: units far off, very different places, coarse steps, full scale as a reading."""
        if not self.medians:
            return
        low, middle, high = self._metres(5, 50, 95)
        if not NEAR <= middle <= FAR:
            yield (
                f"the median depth is {middle:.3g} m: right for close-ups or streets, else the unit is wrong. Is it in "
                "millimetres (.png) or metres (.npy)? Convert it and pack again, or set `scale` of the modality depth "
                "to the metres per unit"
            )
        if high > WIDE * low:
            yield (
                f"the median depth of nine of ten maps is {low:.3g} to {high:.3g} m: right for very different places, "
                "else maps of several units are mixed"
            )
        if 2 * self.coarse > self.medians.total():
            yield (
                f"in {self.coarse} of {self.medians.total()} depth maps all readings are multiples of 10 mm: right for "
                "a sensor of such steps, else they were multiplied on the way, and the unit is wrong"
            )
        if self.saturated:
            yield (
                f"{self.saturated} depth maps have 65535 in over 1 % of their readings: if that stands for no reading, "
                "make it 0 and pack again"
            )

    def faults(self) -> Iterator[str]:
        """Maps of two units in one set, with a sample of each shard that has some of the fewer ones."""
        if (found := self._two_units()) is None:
            return
        near, far, factor, between = found
        fewer = self.farthest if far <= near else self.nearest
        named = [(depth, where) for depth, where in fewer if (depth > between) is (far <= near)]
        yield (
            f"depth: {near} maps, and {far} whose readings are about {factor} times as large: two units in one set; "
            "convert the wrong ones to millimetres (.png) or metres (.npy) and pack again. The fewer are in "
            f"{len(named)} shards"
        )
        for depth, where in named[:MOST_FAULTS]:
            yield f"{where}: its median depth is {depth / 1000:.3g} m"

    def _metres(self, *percentiles: float) -> list[float]:
        at = np.percentile(self._sorted(), percentiles, method="lower")
        return [float(depth) / 1000 for depth in at]

    def _sorted(self) -> np.ndarray:
        depths = sorted(self.medians)
        return np.repeat(depths, [self.medians[depth] for depth in depths])

    def _two_units(self) -> tuple[int, int, int, float] | None:
        """How many maps are before and behind a gap, how many times farther these are, and the gap in millimetres."""
        logs = np.log10(np.maximum(self._sorted(), 1))
        half = 0.1 if len(logs) >= 300 else 0.2  # decades; fewer maps leave gaps by chance
        found = []
        for gap in np.arange(logs[0], logs[-1], half / 5) if len(logs) else ():
            first, middle, last = np.searchsorted(logs, [gap - half, gap, gap + half]).tolist()
            if min(first, len(logs) - last) < FEW:
                continue
            low, high = np.median(logs[:middle]), np.median(logs[middle:])
            power = round(high - low)
            peaks = np.diff(np.searchsorted(logs, [[low - half, low + half], [high - half, high + half]]))
            if abs(high - low - power) < EXACT * power and last - first <= peaks.min() / 5:
                rank = (last - first, abs(2 * gap - low - high))  # the emptiest, then the one in the middle
                found.append((rank, (middle, len(logs) - middle, 10**power, float(10**gap))))
        return min(found)[1] if found else None
