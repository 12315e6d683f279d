"""What the networks of a config read, without building them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modalities import RGB, Depth
from pipeline import config as configs
from pipeline.models.description import DESCRIPTION
from pipeline.models.input_modalities import student_modalities, teacher_modalities


def describe(folder: Path, **spec: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / DESCRIPTION).write_text(json.dumps({"version": 1, **spec}))
    return folder


def test_a_run_and_a_joint_network(make_config: Any, tmp_path: Path) -> None:
    one = describe(tmp_path / "one", modality={"name": "depth", "near": 0.3})
    joint = describe(tmp_path / "joint", networks=["./0", "./1"])
    describe(joint / "0", modality={"name": "rgb"})
    describe(joint / "1", modality={"name": "depth"})
    config = configs.load(make_config(teacher=f"teacher: {{run: [{one}, {joint}]}}"))
    assert list(student_modalities(config)) == [Depth(near=0.5, far=2.0)]
    assert list(teacher_modalities(config)) == [(str(one), Depth(near=0.3)), (str(joint), RGB()), (str(joint), Depth())]


@pytest.mark.parametrize("spec", [{}, {"modality": "depth"}, {"networks": ["../one"]}, {"networks": 3}])
def test_a_teacher_that_is_damaged_has_no_modalities(make_config: Any, tmp_path: Path, spec: dict[str, Any]) -> None:
    run = describe(tmp_path / "one", **spec)
    assert list(teacher_modalities(configs.load(make_config(teacher=f"teacher: {{run: {run}}}")))) == []
    gone = configs.load(make_config(teacher=f"teacher: {{run: {tmp_path / 'gone'}}}"))
    assert list(teacher_modalities(gone)) == []
