"""A dataset like CIFAR: JPEGs of 32 x 32 pixels and about 900 bytes, with ten classes. The pixels are smooth noise."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from pipeline.data.dataset import MANIFEST, Dataset
from pipeline.data.manifest import write_shard

SIDE, CLASSES, PER_SHARD = 32, 10, 1000


def photo(rng: np.random.Generator) -> np.ndarray:
    """uint8 `[32, 32, 3]`."""
    image = cv2.resize(rng.uniform(0, 255, (6, 6, 3)).astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return np.clip(image + rng.normal(0, 2, image.shape), 0, 255).astype(np.uint8)


def write(folder: Path, samples: int) -> Path:
    """Write a packed dataset with one split, `train`.

    Args:
        folder: The new folder.
        samples: Number of samples, at least 10.
    """
    folder.mkdir(parents=True)
    numbers = range(samples)
    shards = [
        write_shard(folder / f"train-{start // PER_SHARD:06d}.tar", _members(numbers[start : start + PER_SHARD]))
        for start in numbers[::PER_SHARD]
    ]
    about = Dataset(
        name="small photos",
        recipe="bench",
        fields=dict.fromkeys(("label.txt", "meta.json", "rgb.jpg"), samples),
        splits={"train": shards},
        classes={"label": [str(number) for number in range(CLASSES)]},
        units={},
        split_rule="all",
    )
    (folder / MANIFEST).write_text(about.model_dump_json())
    return folder


def _members(numbers: range) -> Iterator[tuple[str, dict[str, bytes]]]:
    for number in numbers:
        key = f"photo-{number:06d}"
        yield (
            key,
            {
                "label.txt": str(number % CLASSES).encode(),
                "meta.json": json.dumps({"group": key, "index": number, "source": f"photos/{number}"}).encode(),
                "rgb.jpg": cv2.imencode(".jpg", photo(np.random.default_rng(number)))[1].tobytes(),
            },
        )
