from pathlib import Path

import numpy as np
import pytest

from pipeline.common.errors import UserError
from pipeline.evaluate.probes import Standard, accuracy, classify_frozen
from pipeline.evaluate.retrieval import retrieval
from pipeline.evaluate.shared_space import Space, load_space
from pipeline.models.description import SPACE

RNG = np.random.default_rng(0)


def test_accuracy_and_its_balanced_form() -> None:
    label = np.array([0, 0, 0, 1, -1])
    scores = accuracy(np.array([0, 0, 1, 1, 0]), label)
    assert scores == {"top1": 0.75, "balanced": pytest.approx((2 / 3 + 1) / 2)}
    assert accuracy(np.array([0]), np.array([-1])) == {}


def test_probes_find_what_is_there_and_nothing_where_nothing_is() -> None:
    label, test_label = RNG.integers(0, 4, 400), RNG.integers(0, 4, 200)
    centres = RNG.normal(size=(4, 16)).astype(np.float32)
    noise = [RNG.normal(size=(n, 16)).astype(np.float32) for n in (400, 200)]
    good = classify_frozen(
        1e3 * (centres[label] + 0.2 * noise[0]), label, 1e3 * (centres[test_label] + 0.2 * noise[1]), test_label, 10
    )
    assert min(good.values()) > 0.95
    nothing = classify_frozen(noise[0], label, noise[1], test_label, 10)
    assert max(nothing.values()) < 0.4
    assert classify_frozen(noise[0], np.full(400, -1), noise[1], test_label, 10) == {}


def test_one_neighbour_is_the_nearest_by_cosine() -> None:
    x, y = RNG.normal(size=(50, 8)).astype(np.float32), RNG.integers(0, 3, 50)
    q, truth = RNG.normal(size=(20, 8)).astype(np.float32), RNG.integers(0, 3, 20)
    a, b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (Standard.of(x)(x), Standard.of(x)(q)))
    expected = np.mean(y[(b @ a.T).argmax(1)] == truth)
    assert classify_frozen(x, y, q, truth, 1)["knn"] == pytest.approx(expected)


def test_retrieval_counts_ranks() -> None:
    gallery = np.eye(6, dtype=np.float32)
    assert retrieval(gallery, gallery) == {"R@1": 1, "R@5": 1, "R@10": 1, "median_rank": 1}
    shifted = np.roll(gallery, 1, axis=0) + 0.5 * gallery  # one other is nearer than the partner
    found = retrieval(shifted, gallery)
    assert found["R@1"] == 0
    assert found["median_rank"] == 2


def test_collapsed_features_retrieve_nothing() -> None:
    same = np.ones((40, 8), np.float32)
    found = retrieval(same, RNG.normal(size=(40, 8)).astype(np.float32))
    assert found["R@1"] < 0.2
    assert retrieval(same, same)["median_rank"] == 40


def test_ridge_maps_to_the_teachers_space_and_is_saved(tmp_path: Path) -> None:
    student = RNG.normal(size=(300, 10)).astype(np.float32)
    teacher = (student @ RNG.normal(size=(10, 6)) * 5 + 2).astype(np.float32)
    space = Space.fit(student[:200], teacher[:200])
    mapped = space.of_student(student[200:])
    assert retrieval(mapped, space.of_teacher(teacher[200:]))["R@1"] > 0.95
    assert load_space(tmp_path) is None
    space.save(tmp_path / SPACE)
    again = load_space(tmp_path)
    assert again is not None
    np.testing.assert_array_equal(again.of_student(student), space.of_student(student))
    np.testing.assert_array_equal(again.of_teacher(teacher), space.of_teacher(teacher))
    (tmp_path / SPACE).write_bytes(b"x")
    with pytest.raises(UserError, match="damaged"):
        load_space(tmp_path)


def test_dead_dimensions_stay_out() -> None:
    x = np.concatenate([RNG.normal(size=(20, 3)), np.ones((20, 1))], 1).astype(np.float32)
    assert (Standard.of(x)(x + 5)[:, 3] == 0).all()
    assert np.isfinite(Standard.of(np.zeros((4, 2), np.float32))(np.ones((4, 2), np.float32))).all()
