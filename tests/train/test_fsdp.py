"""Oracle: FSDP2 on two CPU processes against DDP on two. Weights, checkpoints and the student come out alike."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import launch
from safetensors.torch import load_file

from pipeline import config as configs
from pipeline.models.network import load_network
from pipeline.runs.checkpoint import list_checkpoints
from pipeline.train import train

LOSSES = "  cross_entropy: {}\n  kd: {weight: 2}\n  wcord: {dim: 8, queue: 32}\n  info_nce: {dim: 8}"
pytestmark = pytest.mark.slow


def cut(path: Path, run: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return launch([str(path), f"run={run}", *overrides], Path(__file__).with_name("fsdp_on_cpu.py"))


def ddp(path: Path, run: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return launch(["train", str(path), f"run={run}", "--resume", *overrides])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_close(one: Path, two: Path) -> None:
    a, b = weights(one), weights(two)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(
            b[name], a[name], rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.fixture
def path(make_config: Any) -> Path:
    teacher = train(configs.load(make_config("teacher"), ["student.modality=rgb", "train.steps=4"]))
    made: Path = make_config("student", f"teacher: {{run: {teacher}}}", LOSSES)
    return made


@pytest.mark.parametrize("extra", [(), ("train.gradient_checkpointing=true",)], ids=["plain", "checkpointed"])
def test_a_cut_model_trains_as_a_whole_one(path: Path, tmp_path: Path, extra: tuple[str, ...]) -> None:
    settings = (*extra, "evaluation.every=6", "train.keep_checkpoints=9")
    one, two = ddp(path, tmp_path / "ddp", *settings), cut(path, tmp_path / "fsdp", *settings)
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    number, total = two.stdout.split(" parameters are cut")[0].splitlines()[-1].split(" of ")
    assert 0 < int(number) < int(total)  # the losses' parameters stay whole
    for folder in ("student", "best", "checkpoints/step_00000005", "checkpoints/step_00000012"):
        assert_close(tmp_path / "ddp" / folder, tmp_path / "fsdp" / folder)
    assert load_network(tmp_path / "fsdp" / "student").classes == ["disc", "square", "cross"]


def test_checkpoints_of_cut_and_whole_models_are_the_same_files(path: Path, tmp_path: Path) -> None:
    """What one has begun the other ends: the optimiser's state travels too."""
    whole = tmp_path / "whole"
    assert ddp(path, whole, "train.keep_checkpoints=9").returncode == 0
    for first, second in ((ddp, cut), (cut, ddp)):
        run = tmp_path / f"{first.__name__}_{second.__name__}"
        done = first(path, run, "train.keep_checkpoints=9")
        assert done.returncode == 0, done.stderr
        shutil.rmtree(run / "student")
        for checkpoint in list_checkpoints(run / "checkpoints")[1:]:
            shutil.rmtree(checkpoint)
        done = second(path, run, "train.keep_checkpoints=9")
        assert done.returncode == 0, done.stderr
        assert_close(whole / "student", run / "student")


def test_parts_of_a_batch_are_refused(path: Path, tmp_path: Path) -> None:
    done = cut(path, tmp_path / "run", "train.micro_batch=4")
    assert done.returncode != 0
    assert "train.micro_batch: not supported with FSDP" in done.stderr
