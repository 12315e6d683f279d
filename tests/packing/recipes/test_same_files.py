"""Rows of one file are one sample, or one group: no file is ever in two splits."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.packing.check import check
from pipeline.packing.pack import pack
from pipeline.packing.recipes import manifest

PHOTOS, CAPTIONS = 12, 5


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    with (tmp_path / "captions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["row", "image", "caption", "kind"])
        for n in range(PHOTOS):
            cv2.imwrite(str(tmp_path / f"{n:04d}.jpg"), rng.integers(0, 255, (32, 32, 3)))
            for k in range(CAPTIONS):
                rows.writerow([f"{n}_{k}", f"{n:04d}.jpg", f"picture {n}, way {k}", "ab"[k % 2]])
    return tmp_path / "captions.csv"


@pytest.mark.parametrize("key", [None, "row"])
def test_a_row_per_caption_is_a_sample_per_photo(table: Path, tmp_path: Path, key: str | None) -> None:
    plan = manifest.plan(table, {"rgb": "image", "text": "caption"}, key=key)
    assert len(plan.samples) == PHOTOS
    for n, sample in enumerate(plan.samples):
        assert sample.texts["text.txt"].splitlines() == [f"picture {n}, way {k}" for k in range(CAPTIONS)]
    pack(plan, tmp_path / "out")
    assert check(tmp_path / "out").faults == []


def test_rows_that_differ_in_more_share_a_group(table: Path) -> None:
    plan = manifest.plan(table, {"rgb": "image", "text": "caption"}, ["kind"], key="row")
    assert len(plan.samples) == 2 * PHOTOS  # one for each class
    assert len({sample.group for sample in plan.samples}) == PHOTOS
    assert all(len({s.files["rgb.jpg"] for s in plan.samples if s.group == g}) == 1 for g in {"0_0", "1_0"})


def test_groups_of_the_table_stay(table: Path) -> None:
    plan = manifest.plan(table, {"rgb": "image"}, key="row", group="row")
    assert len({sample.group for sample in plan.samples}) == PHOTOS * CAPTIONS
