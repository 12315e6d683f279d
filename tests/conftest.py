"""What tests of every package ask for: the small dataset, and configs that train on it."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from shapes_dataset import write_dataset

from pipeline import config as configs
from pipeline.common.console import PACKAGES
from pipeline.config import renamed
from pipeline.evaluate import evaluate
from pipeline.train import train


def pytest_collection() -> None:
    """Importing makes no garbage worth looking for."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Keep what was imported, some 10^6 objects, from the garbage collector: each training calls it twice."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _unconfigured_logging() -> None:
    """Each test begins as a process does: nothing is set up for logging, and no old name has been reported."""
    for name in PACKAGES:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(logging.NOTSET)
    renamed._said.clear()


@pytest.fixture(scope="session", autouse=True)
def _cache_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test writes to the folder of the person who runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WCORD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def forked_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of a pool are forked from one that has imported everything."""
    import launching  # noqa: F401 - says what the fork server imports

    monkeypatch.setattr("pipeline.common.process_pool.START_METHOD", "forkserver")


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
