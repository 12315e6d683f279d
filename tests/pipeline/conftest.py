"""A teacher and a student that several test files take away, search and serve."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import config as configs
from pipeline.evaluate import evaluate
from pipeline.train import train

BASE = """
data: {{shards: {shapes}, batch_size: 16, workers: 0}}
train: {{steps: 60, warmup: 2, log_every: 20, learning_rate: 0.02}}
losses: {{cross_entropy: {{}}}}
"""
CNN = "encoder: {name: cnn5, width: 4, size: 16}"


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> Path:
    """A folder with an evaluated depth `student` of an RGB `teacher`; do not change it."""
    folder = tmp_path_factory.mktemp("runs")
    students = {
        "teacher": f"student: {{modality: rgb, {CNN}}}",
        "student": f"student: {{modality: {{name: depth, near: 0.5, far: 2.0}}, {CNN}}}\n"
        f"teacher: {{run: {folder / 'teacher'}}}",
    }
    for name, text in students.items():
        path = folder / f"{name}.yaml"
        path.write_text(f"run: {folder / name}\n{BASE.format(shapes=shapes)}{text}")
        train(configs.load(path))
    evaluate(folder / "student")
    return folder
