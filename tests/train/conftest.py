"""What tests of cached teachers share."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline import config as configs
from pipeline.train import train


@pytest.fixture
def data(shapes: Path, tmp_path: Path) -> Path:
    """A copy of the dataset: caches are written into it."""
    return Path(shutil.copytree(shapes, tmp_path / "data"))


@pytest.fixture
def rgb_teacher(make_config: Any) -> Path:
    """The run of a teacher that reads photos."""
    return train(configs.load(make_config("teacher"), ["student.modality=rgb", "train.steps=4"]))
