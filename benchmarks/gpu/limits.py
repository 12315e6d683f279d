"""How long and how often to measure, and the numbers that result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypedDict

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Number(TypedDict):
    """Median and range of repeated measurements, and all values."""

    median: float
    least: float
    most: float
    values: list[float]


Numbers = dict[str, Number]
"""Quantity with its unit -> its values."""


class OutOfTimeError(Exception):
    """The remaining time does not suffice for a measurement."""


@dataclass
class Limits:
    """The limits of a measurement.

    Attributes:
        small: Whether to measure a small form, which runs on a CPU within seconds.
        deadline: Time in seconds since the epoch at which the measurement must have ended.
        started: Time at which its process was started.
        start_up: Seconds from then to the end of the warm-up.
    """

    small: bool
    deadline: float
    started: float
    start_up: float = 0.0

    @property
    def repeats(self) -> int:
        """The smallest number of repeats."""
        return 1 if self.small else 3

    @property
    def seconds(self) -> float:
        """Seconds of all repeats together; there are more of them if they are shorter."""
        return 0.0 if self.small else 15.0

    def warmed_up(self, needed: float) -> None:
        """End the warm-up, which is also the short run from which the time of the repeats is estimated.

        Args:
            needed: Estimated seconds of the smallest number of repeats.

        Raises:
            OutOfTimeError: The remaining time does not suffice.
        """
        self.start_up = time.time() - self.started
        left = self.deadline - time.time()
        if needed > left:
            raise OutOfTimeError(f"needs about {needed:.0f} s more after its warm-up; {max(left, 0):.0f} s remain")


def number(values: Sequence[float]) -> Number:
    """Summarise repeated measurements.

    Raises:
        ValueError: There are none, or one of them is not finite.
    """
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"no finite measurements: {list(values)}")
    return {"median": median(values), "least": min(values), "most": max(values), "values": list(values)}


def synchronize() -> None:
    """Wait until the GPU has finished; nothing on a CPU."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def seconds_per_call(work: Callable[[], object], limits: Limits) -> list[float]:
    """Time a function.

    The first call is a warm-up that may compile. A second one shows how many calls fill a repeat, so that waiting for
    the GPU at its end does not count.

    Returns:
        Seconds per call, one value per repeat.
    """
    work()
    once = _timed(work, 1)
    calls = max(1, math.ceil(limits.seconds / limits.repeats / once))
    limits.warmed_up(limits.repeats * calls * once)
    return [_timed(work, calls) / calls for _ in range(limits.repeats)]


def _timed(work: Callable[[], object], calls: int) -> float:
    synchronize()
    begun = time.perf_counter()
    for _ in range(calls):
        work()
    synchronize()
    return time.perf_counter() - begun
