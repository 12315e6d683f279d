"""Retrieval against brute force; its intervals against simulation; chance against random features."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluate.probes import never_predicted
from pipeline.evaluate.retrieval import chance, intervals, ranks, retrieval, summary


@pytest.mark.parametrize("n", [1, 2, 7, 60])
def test_ranks_recalls_and_median_equal_brute_force(n: int) -> None:
    rng = np.random.default_rng(n)
    a = rng.normal(size=(n, 5)).astype(np.float32)
    b = (a + rng.normal(size=(n, 5))).astype(np.float32)
    cosine = [[float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)) for y in b] for x in a]
    expected = [sorted(row, reverse=True).index(row[i]) + 1 for i, row in enumerate(cosine)]
    assert ranks(a, b).tolist() == expected
    found = retrieval(a, b)
    for k in (1, 5, 10):
        assert found[f"R@{k}"] == pytest.approx(sum(rank <= k for rank in expected) / n)
    middle = sorted(expected)[(n - 1) // 2 : n // 2 + 1]
    assert found["median_rank"] == sum(middle) / len(middle)


def test_a_vector_that_is_not_finite_has_the_last_rank() -> None:
    a = np.eye(4, dtype=np.float32)
    broken = a.copy()
    broken[1] = np.nan
    assert ranks(broken, a).tolist() == [1, 4, 1, 1]


@pytest.mark.parametrize("name", ["R@1", "R@10", "median_rank"])
def test_intervals_contain_the_truth_about_as_often_as_they_say(name: str) -> None:
    rng = np.random.default_rng(0)
    population = np.ceil(rng.exponential(12, 200_001)).astype(int)
    truth, trials = summary(population)[name], 100
    inside = 0
    for seed in range(trials):
        found = intervals(rng.choice(population, 100), seed)
        inside += found[f"{name}_low"] <= truth <= found[f"{name}_high"]
    assert 0.9 <= inside / trials <= 1


def test_the_interval_of_nothing_found_is_not_empty() -> None:
    found = intervals(np.full(12, 11))
    assert found["R@1_low"] == pytest.approx(0, abs=1e-9)
    assert 0.1 < found["R@1_high"] < 0.4


def test_chance_is_what_random_features_reach_on_average() -> None:
    rng = np.random.default_rng(0)
    n = 25
    found = [retrieval(*rng.normal(size=(2, n, 8)).astype(np.float32)) for _ in range(200)]
    expected = chance(n)
    assert expected == {"R@1": 1 / 25, "R@5": 5 / 25, "R@10": 10 / 25, "median_rank": 13}
    for name, value in expected.items():
        assert np.mean([one[name] for one in found]) == pytest.approx(value, rel=0.15)
    assert chance(3)["R@10"] == 1


def test_classes_that_are_never_predicted_are_named_once_they_occur() -> None:
    counts = np.array([[3, 1, 0], [0, 4, 0], [0, 2, 0]])
    assert (
        never_predicted(counts, ["a", "b", "c\x1b[31m"]) == r"The student never predicts 1 of the 3 classes: c\x1b[31m."
    )
    assert never_predicted(counts * [[1], [1], [0]], ["a", "b", "c"]) == ""
