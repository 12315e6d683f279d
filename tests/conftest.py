"""A packed data set small enough for every test: paired photos and depth maps of three shapes."""

from __future__ import annotations

import json
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import pytest

from pipeline.shards import MANIFEST, Dataset, write_shard

CLASSES = ["disc", "square", "cross"]


def members(index: int, size: int = 32) -> dict[str, bytes]:
    """One sample: a shape of class `index % 3` at a random place, in colour and in millimetres."""
    rng = np.random.default_rng(index)
    shape = np.zeros((size, size), np.uint8)
    x, y = (int(v) for v in rng.integers(10, size - 10, 2))
    if index % 3 == 0:
        cv2.circle(shape, (x, y), 7, 255, -1)
    elif index % 3 == 1:
        cv2.rectangle(shape, (x - 7, y - 7), (x + 7, y + 7), 255, -1)
    else:
        cv2.line(shape, (x - 8, y), (x + 8, y), 255, 3)
        cv2.line(shape, (x, y - 8), (x, y + 8), 255, 3)
    on = shape > 0
    rgb = np.where(on[..., None], rng.integers(120, 255, 3), rng.integers(0, 100, 3)).astype(np.uint8)
    depth = np.where(on, 700, 1500) + rng.normal(0, 5, on.shape)
    meta = {"group": f"g{index // 2}", "index": index, "labels": {"parity": index % 2}}
    return {
        "rgb.jpg": cv2.imencode(".jpg", rgb)[1].tobytes(),
        "depth.png": cv2.imencode(".png", depth.astype(np.uint16))[1].tobytes(),
        "label.txt": str(index % 3).encode(),
        "meta.json": json.dumps(meta).encode(),
    }


def write_dataset(folder: Path, shards: dict[str, list[int]]) -> Path:
    """Write shards of so many samples: `{"train": [30, 20], "test": [10]}`."""
    folder.mkdir(parents=True, exist_ok=True)
    index, splits = 0, {}
    for split, counts in shards.items():
        splits[split] = []
        for number, count in enumerate(counts):
            samples = [(f"s{i:05d}", members(i)) for i in range(index, index + count)]
            splits[split].append(write_shard(folder / f"{split}-{number:06d}.tar", samples))
            index += count
    dataset = Dataset(
        name="shapes",
        recipe="test",
        fields=dict.fromkeys(("rgb.jpg", "depth.png", "label.txt", "meta.json"), index),
        splits=splits,
        classes={"label": CLASSES, "parity": ["even", "odd"]},
        units={"depth.png": "millimetres, 0 = no reading"},
        split_rule="by index",
    )
    (folder / MANIFEST).write_text(dataset.model_dump_json())
    return folder


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


@pytest.fixture
def make_config(tmp_path: Path, shapes: Path):  # type: ignore[no-untyped-def]
    """Write a config of a depth student; `teacher` and `losses` are YAML."""

    def make(run: str = "run", teacher: str = "", losses: str = "  cross_entropy: {}", shards: Path = shapes) -> Path:
        path = tmp_path / f"{run}.yaml"
        path.write_text(CONFIG.format(run=tmp_path / run, shards=shards, teacher=teacher, losses=losses))
        return path

    return make
