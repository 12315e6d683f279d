"""`wcord check --config`: what the networks of a config see of a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from command_line import call
from foreign_shards import plain_tar

from modalities import RGB, Depth, Geometry
from modalities.depth_map import DepthMap
from pipeline.data.views import View
from pipeline.report.network_inputs import _statistics


@pytest.mark.parametrize(
    ("share", "metres", "note"),
    [
        (1.0, 4.0, None),
        (0.002, 4.0, "of the pixels contain a value"),
        (1.0, 9.7, "of the values are saturated"),
    ],
)
def test_inputs_that_carry_little_are_noted(share: float, metres: float, note: str | None) -> None:
    rng = np.random.default_rng(0)
    inputs = []
    for _ in range(6):
        valid = rng.random((96, 96)) < share
        depth = np.where(valid, metres + rng.random((96, 96)), 0).astype(np.float32)
        value = DepthMap(depth, valid, (90.0, 90.0, 47.5, 47.5))
        inputs.append(Depth().augment(value, Geometry(), 48, None))
    fact, notes = _statistics("depth", View(Depth(), 48), inputs)
    assert fact.startswith("  depth: 2 x 48 x 48, values ")
    assert len(notes) == (note is not None)
    assert all((note or "-") in line for line in notes)


def test_constant_photos_are_noted() -> None:
    photos = [RGB().augment(np.full((8, 8, 3), 90, np.uint8), Geometry(), 8, None)] * 3
    assert _statistics("rgb", View(RGB(), 8), photos)[1] == ["rgb: 3 of 3 inputs are constant"]


def test_a_contact_sheet_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for n in range(10):
        (tmp_path / "depth" / "ab"[n % 2]).mkdir(parents=True, exist_ok=True)
        depth = rng.integers(2000, 3000, (32, 32)).astype(np.uint16)
        cv2.imwrite(str(tmp_path / "depth" / "ab"[n % 2] / f"{n}.png"), depth)
    packed, sheet = tmp_path / "packed", tmp_path / "pairs.png"
    assert call("pack", "folders", tmp_path, packed, "--field", "depth=depth", "--label-from", "parent") == 0
    assert call("check", packed, "--config", "depth_labels", "--sheet", sheet) == 0
    assert "student: depth: 2 x 48 x 48, values" in capsys.readouterr().out
    shown = cv2.imread(str(sheet))
    assert shown is not None
    assert shown.shape == (8 * 160, 160, 3)  # the samples of train
    assert shown.std() > 10


def test_each_row_of_the_sheet_is_one_sample(tmp_path: Path, make_config: Any) -> None:
    """Also where some samples have one side only."""
    samples = []
    for n in range(12):
        photo = np.full((8, 8, 3), 20 * n + 10, np.uint8)
        members = {"rgb.png": photo, "depth.png": np.full((8, 8), 1000, np.uint16)}
        found = {name: cv2.imencode(".png", image)[1].tobytes() for name, image in members.items()}
        samples.append((f"s{n:02d}", found if n % 3 else {"depth.png": found["depth.png"]}))
    plain_tar(tmp_path / "data" / "train.tar", samples)
    network = "encoder: {name: cnn5, width: 4, size: 16, weights: random}"
    teacher = f"teacher: {{modality: {{name: rgb, jitter: 0}}, {network}}}"
    config = make_config(teacher=teacher, losses="  cosine: {}", shards=tmp_path / "data")
    sheet = tmp_path / "sheet.png"
    keep = ["data.unpaired=keep", "data.crop=[1.0, 1.0]"]
    assert call("check", tmp_path / "data", *keep, "--config", config, "--sheet", sheet) == 0
    shown = cv2.imread(str(sheet)).reshape(12, 160, 2, 160, 3)
    assert shown[:, 80, 0, 80, 0].tolist() == [20 * n + 10 if n % 3 else 0 for n in range(12)]
