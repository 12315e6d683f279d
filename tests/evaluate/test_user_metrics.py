"""Metrics of the user."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.common.errors import UserError
from pipeline.evaluate import evaluate
from pipeline.evaluate.user_metrics import load_metrics, user_scores


def test_a_run_is_evaluated_by_them(runs: Path, tmp_path: Path) -> None:
    run = shutil.copytree(runs / "teacher", tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["run"], config["evaluation"]["metrics"] = str(run), ["sklearn.metrics:accuracy_score"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    results = evaluate(run)
    assert results["student/accuracy_score"] == pytest.approx(results["student/top1"])
    assert json.loads((run / "results.json").read_text()) == results


def test_only_labelled_samples_count() -> None:
    label, prediction = np.array([0, 1, -1, 1]), np.array([0, 1, 1, 0])
    scores = user_scores({"accuracy": lambda y, p: float((y == p).mean())}, label, prediction)
    assert scores == {"accuracy": pytest.approx(2 / 3)}
    assert user_scores({"accuracy": lambda y, p: 1.0}, np.full(2, -1), np.zeros(2)) == {}


def test_faults_are_named() -> None:
    with pytest.raises(UserError, match=r"evaluation.metrics: .*no 'f7'"):
        load_metrics(["sklearn.metrics:f7"])
    with pytest.raises(UserError, match=r"os:sep: is not a function"):
        load_metrics(["os:sep"])
    with pytest.raises(UserError, match=r"another metric has the same name"):
        load_metrics(["os:getcwd", "pathlib:os", "os:getcwd"][::2])
    with pytest.raises(UserError, match=r"metric bad: ZeroDivisionError"):
        user_scores({"bad": lambda y, p: 1 / 0}, np.array([0]), np.array([0]))
