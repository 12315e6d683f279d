"""What tests of every package ask for: the small data set, and configs that train on it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from shapes_dataset import write_dataset


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 training and 30 test samples in 3 + 2 shards of unequal size; do not change it."""
    return write_dataset(tmp_path_factory.mktemp("shapes"), {"train": [50, 30, 16], "test": [20, 10]})


CONFIG = """
run: {run}
data: {{shards: {shards}, batch_size: 16, workers: 0, crop: [0.7, 1.0], flip: true}}
{teacher}
student:
  modality: {{name: depth, near: 0.5, far: 2.0}}
  encoder: {{name: cnn5, width: 4, size: 16}}
losses:
{losses}
train: {{steps: 12, warmup: 2, log_every: 4, checkpoint_every: 5, learning_rate: 3.0e-3}}
"""


@pytest.fixture(scope="session")
def config_writer(shapes: Path) -> Callable[[Path], Callable[..., Path]]:
    """For a folder, what writes configs of a depth student into it; `teacher` and `losses` are YAML."""

    def within(folder: Path) -> Callable[..., Path]:
        def make(
            run: str = "run", teacher: str = "", losses: str = "  cross_entropy: {}", shards: Path = shapes
        ) -> Path:
            path = folder / f"{run}.yaml"
            path.write_text(CONFIG.format(run=folder / run, shards=shards, teacher=teacher, losses=losses))
            return path

        return make

    return within


@pytest.fixture
def make_config(tmp_path: Path, config_writer: Callable[[Path], Callable[..., Path]]) -> Callable[..., Path]:
    return config_writer(tmp_path)
