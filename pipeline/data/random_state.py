"""Random generators that are seeded by several numbers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def generator(*seeds: int) -> np.random.Generator:
    """The generator `np.random.default_rng(seeds)`, made in half the time.

    NumPy splits each number into words of 32 bits by arrays; here, plain integers are split.

    Args:
        seeds: Numbers, at least 0.
    """
    words = np.array([word for seed in seeds for word in _words(seed)], np.uint32)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


def _words(seed: int) -> Iterator[int]:
    yield seed & 0xFFFFFFFF
    while seed := seed >> 32:
        yield seed & 0xFFFFFFFF
