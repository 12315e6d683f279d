"""Gains and their intervals by published values; the plan by embeddings whose plan is known."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from pipeline.evaluate.retrieval import interval
from pipeline.report.classes import difference_interval, gains, transport_plan
from pipeline.runs.artifacts import Confusion, Embeddings


def test_class_by_class_against_the_best_baseline() -> None:
    confusion = {"student": np.array([[9, 1], [6, 4]]), "baseline/kd": np.array([[1, 9], [5, 5]])}
    found = gains(Confusion(["cat", "dog"], confusion | {"baseline/worse": np.array([[0, 10], [10, 0]])}))
    rows = re.findall(r"<tr><td>(cat|dog)</td>(.*?)</tr>", found)
    values = {name: [float(v) for v in re.findall(r'value="([^"]*)"', row)] for name, row in rows}
    # samples, student, baseline, gain, low, high
    assert values["cat"][:4] == pytest.approx([10, 90, 10, 80])
    assert "better" in rows[0][1]
    assert "within noise" in rows[1][1]
    # Newcombe 1998, table II, example (a): 56/70 - 48/80.
    assert difference_interval(56 / 70, 70, 48 / 80, 80) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    assert interval(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)


def test_the_plan_of_true_pairs_is_a_diagonal() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 32))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    e = Embeddings(np.array([f"k{i}" for i in range(200)]), np.arange(200) % 4, list("abcd"), None, x, x)
    mass = [
        float(re.search(r"<b>([\d.]+) %", transport_plan(one, {"wcord": {"epsilon": 0.05}}))[1])  # type: ignore[index]
        for one in (e, replace(e, teacher=x[::-1].copy()))
    ]
    assert mass[0] > 95
    assert mass[1] < 10
