"""A setting of the suite that is small enough for tests."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.suite.settings import Setting


def rows(folder: Path) -> list[dict[str, str]]:
    """Forty squares on photos and on depth maps, of two sizes."""
    found = []
    for number in range(40):
        size, place = (6, 14)[number % 2], 2 + number % 5
        picture = np.full((24, 24), 40, np.uint8)
        picture[place : place + size, place : place + size] = 220
        for field, image in (("rgb", picture), ("depth", picture.astype(np.uint16) * 4)):
            cv2.imwrite(str(folder / f"{number}_{field}.png"), image)
        files = {field: str(folder / f"{number}_{field}.png") for field in ("rgb", "depth")}
        fold = "test" if number < 8 else "val" if number < 16 else "train"
        found.append({"id": str(number), "class": "small" if size == 6 else "large", "fold": fold, **files})
    return found


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    table = tmp_path / "table.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "class", "fold", "rgb", "depth"])
        writer.writeheader()
        writer.writerows(rows(tmp_path))
    network = {"encoder": {"name": "cnn5", "width": 4, "size": 16}}
    section = {"data": {"batch_size": 8}, "train": {"steps": 3, "warmup": 1}}
    return Setting(
        table=str(table),
        test={"fold": ["test"]},
        val={"fold": ["val"]},
        fields={"rgb": "rgb", "depth": "depth"},
        label="class",
        measure="top1",
        teacher=section | {"student": {"modality": "rgb", **network}, "losses": {"cross_entropy": {}}},
        student=section | {"student": {"modality": "depth", **network}},
    )
