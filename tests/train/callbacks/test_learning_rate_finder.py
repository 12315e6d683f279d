"""The learning-rate finder."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import pytest

from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.train import train
from pipeline.train.callbacks.learning_rate_finder import smoothed, steepest


def test_the_search_ends_the_run_and_suggests_a_rate(make_config: Any, caplog: pytest.LogCaptureFixture) -> None:
    callback = "train.callbacks=[{name: learning_rate_finder, low: 1.0e-5, high: 10, steps: 60}]"
    with caplog.at_level("INFO"):
        run = train(configs.load(make_config(), [callback, "train.steps=60", "train.log_every=60", "train.clip=null"]))
    found = json.loads((run / "learning_rate_finder.json").read_text())
    rates = [row["learning_rate"] for row in found["steps"]]
    assert rates[0] == pytest.approx(1e-5)
    assert len(rates) <= 60
    assert all(b / a == pytest.approx(10 ** (6 / 59)) for a, b in itertools.pairwise(rates))
    assert 1e-4 < found["suggestion"] < 1
    assert "set train.learning_rate=" in caplog.text


def test_the_rates_are_those_of_the_optimiser(make_config: Any) -> None:
    """With a rate so small that nothing is learned, weights do not move; the scheduled rate would move them."""
    from safetensors.torch import load_file

    from pipeline.models.build import build_model

    callback = "train.callbacks=[{name: learning_rate_finder, low: 1.0e-12, high: 2.0e-12, steps: 20}]"
    config = configs.load(make_config(), [callback, "train.steps=20"])
    before = build_model(config).student.state_dict()
    after = load_file(train(config) / "student" / "model.safetensors")
    assert all((after[k] - v).abs().max() < 1e-8 for k, v in before.items() if k.endswith("weight") and v.ndim > 1)


def test_the_steepest_descent_before_the_minimum() -> None:
    curve = [5, 1] * 5 + [3, 3, 2.9, 2, 0.8, 0.7, 0.6, 5, 2, 9]  # the first ten are noise
    assert steepest(curve) == 13
    assert smoothed([2.0] * 5) == pytest.approx([2.0] * 5)
    assert steepest([1.0, math.nan]) == 0


def test_a_run_shorter_than_the_search_is_refused(make_config: Any) -> None:
    with pytest.raises(UserError, match=r"learning_rate_finder.steps: is 100, but the run has only 12 steps"):
        train(configs.load(make_config(), ["train.callbacks=[learning_rate_finder]"]))
