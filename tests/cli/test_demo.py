"""The size of the demo: what a machine can do in the target time, within limits."""

from __future__ import annotations

import pytest

from pipeline import config as configs
from pipeline.cli.demo import FULL_DURATION, MINUTES, SMALLEST, affordable_fraction, label_fraction, step_seconds


def test_the_demo_is_full_on_a_fast_machine_and_never_below_its_smallest_size() -> None:
    limit = 60 * MINUTES / FULL_DURATION
    assert affordable_fraction(1e-3) == affordable_fraction(limit) == 1
    assert affordable_fraction(100.0) == SMALLEST
    assert affordable_fraction(limit / 0.8) == pytest.approx(0.8)


def test_a_smaller_demo_has_as_many_labels_as_the_full_one() -> None:
    assert label_fraction(1.0) == 0.05
    assert label_fraction(0.4) * 0.4 == pytest.approx(0.05)
    assert label_fraction(0.01) == 1


def test_a_step_of_a_larger_batch_takes_longer() -> None:
    small, large = (step_seconds(configs.load("rgb_teacher", [f"data.batch_size={n}"])) for n in (2, 64))
    assert 0 < small < large
