"""A packed dataset small enough for every test: paired photos and depth maps of three shapes."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from pipeline.data.dataset import MANIFEST, Dataset
from pipeline.data.manifest import write_shard

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
