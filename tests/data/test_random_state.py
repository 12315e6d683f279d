"""The generator is the one of NumPy."""

from __future__ import annotations

import random

import numpy as np
import pytest

from pipeline.data.random_state import generator

NUMBERS = random.Random(0)


@pytest.mark.parametrize(
    "seeds",
    [[0], [0, 0, 0], [2**32], [2**32 - 1, 2**64 - 1, 2**70]]
    + [[NUMBERS.randrange(2 ** NUMBERS.randrange(1, 70)) for _ in range(NUMBERS.randrange(1, 6))] for _ in range(20)],
)
def test_draws_are_those_of_numpy(seeds: list[int]) -> None:
    expected = np.random.default_rng(seeds).integers(2**63, size=4)
    assert generator(*seeds).integers(2**63, size=4).tolist() == expected.tolist()
