"""Intervals over seeds and test samples: their coverage in a simulation, and when there are none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.bench.crossed import crossed, crossed_interval
from pipeline.bench.tables import Entry, as_csv, markdown
from pipeline.evaluate.write_artifacts import write_arrays
from pipeline.runs.compare import Group, SeedStatistics, paired_difference
from pipeline.runs.reader import Run


@pytest.mark.parametrize(
    ("of_seeds", "of_samples"), [(0.1, 1.0), (1.0, 0.1), (0.3, 3.0), (0.0, 1.0)], ids=["both", "seeds", "equal", "none"]
)
def test_the_interval_covers_the_true_difference(of_seeds: float, of_samples: float) -> None:
    """And the one over seeds alone does not, where the choice of test samples matters."""
    rng, seeds, samples, rounds = np.random.default_rng(0), 4, 100, 500
    hits = over_seeds = 0
    for _ in range(rounds):
        values = 0.3 + of_seeds * rng.normal(size=(seeds, 1)) + of_samples * rng.normal(size=(1, samples))
        values += rng.normal(size=(seeds, samples))
        low, high = crossed_interval(values)
        hits += low <= 0.3 <= high
        alone = paired_difference(values.mean(1).tolist())
        assert alone.low is not None
        assert alone.high is not None
        over_seeds += alone.low <= 0.3 <= alone.high
    assert hits / rounds > 0.925
    if of_samples == 3:
        assert over_seeds / rounds < 0.9


def test_without_an_effect_of_samples_it_is_the_paired_interval() -> None:
    """The oracle: if each seed has the same difference on all samples, the samples do not matter."""
    differences = [0.1, 0.3, 0.2]
    alone = paired_difference(differences)
    assert crossed_interval(np.repeat(np.array(differences)[:, None], 50, 1)) == pytest.approx((alone.low, alone.high))
    assert crossed_interval(np.full((3, 50), 0.2)) == pytest.approx((0.2, 0.2))


def group(folder: Path, name: str, rights: list[np.ndarray], keys: list[str]) -> Group:
    """Runs as evaluation leaves them: class 0 is right for all samples but the last, which has no label."""
    runs = []
    for seed, right in enumerate(rights):
        run = folder / f"{name}_s{seed}"
        (run / "evaluation").mkdir(parents=True)
        label = np.append(np.zeros(len(right), int), -1)
        arrays = {"keys": np.array(keys), "label": label, "classes": np.array(["a", "b"])}
        arrays |= {"prediction": np.append(1 - right.astype(int), 0), "student": np.ones((len(keys), 2), np.float16)}
        write_arrays(run / "evaluation" / "embeddings.npz", arrays)
        results = {"student/top1": float(right.mean()), "samples/test": float(len(keys))}
        runs.append(Run(run, {"seed": seed}, {}, results))
    return Group(name, tuple(runs))


def test_the_interval_is_that_of_the_stored_predictions(tmp_path: Path) -> None:
    rng, keys = np.random.default_rng(1), [f"s{number:03d}" for number in range(41)]
    ours, theirs = ([rng.random(40) < share for _ in range(3)] for share in (0.8, 0.5))
    method, baseline = group(tmp_path, "kd", ours, keys), group(tmp_path, "labels", theirs, keys)
    expected = crossed_interval(np.stack(ours).astype(float) - np.stack(theirs))
    assert crossed(method, baseline) == pytest.approx(expected)
    assert crossed(baseline, baseline) is None
    one = Group("kd", method.runs[:1])
    assert crossed(one, baseline) is None
    part = [replace(run, results=run.results | {"samples/test": 42.0}) for run in method.runs]  # not all are stored
    assert crossed(Group("kd", tuple(part)), baseline) is None
    older = [replace(run, results=run.results | {"student/top1": 0.111}) for run in method.runs]  # of other predictions
    assert crossed(Group("kd", tuple(older)), baseline) is None
    assert crossed(group(tmp_path, "other", ours, ["x", *keys[1:]]), baseline) is None
    assert (
        crossed(Group("kd", tuple(Run(tmp_path / "none", r.config, {}, r.results) for r in method.runs)), baseline)
        is None
    )


def test_the_tables_have_it_if_it_is_known() -> None:
    difference = paired_difference([0.1, 0.2])
    found = [
        Entry("a", name, "student/top1", "labels", SeedStatistics(0.6, 0.1, 2), own, None, None, None, None, ends)
        for name, own, ends in (("teacher", None, None), ("labels", None, None), ("kd", difference, (-0.012, 0.312)))
    ]
    assert "| minus labels, over seeds and test samples | a |" in (text := markdown(found))
    assert "| kd | [-1.20, +31.20] |" in text
    assert "seeds and test samples" not in markdown(found[:2])
    assert as_csv(found).splitlines()[-1].endswith("-0.012,0.312")
