"""`teacher.cache: auto`: training fills the cache, with the results and guarantees of one that is made before it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline import config as configs
from pipeline.train import train
from pipeline.train.cache_teacher import cache

LOSSES = "  kd: {}\n  wcord: {dim: 8}"
PLAIN = ("data.crop=[1,1]", "data.flip=false")


@pytest.fixture
def data(shapes: Path, tmp_path: Path) -> Path:
    """A copy of the dataset: the cache is written into it."""
    return Path(shutil.copytree(shapes, tmp_path / "data"))


@pytest.fixture
def student(make_config: Any, data: Path) -> Path:
    """A config that fills the cache of two views in its two epochs of six steps, and reads it in a third."""
    teacher = train(configs.load(make_config("teacher"), ["student.modality=rgb", "train.steps=4"]))
    path: Path = make_config("student", f"teacher: {{run: {teacher}, cache: auto, views: 2}}", LOSSES, shards=data)
    return path


def run_of(path: Path, name: str, *overrides: str, resume: bool = False) -> Path:
    run = f"run={path.with_name(name)}"
    return train(configs.load(path, [run, "train.log_every=1", "train.steps=18", *overrides]), resume=resume)


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "student" / "model.safetensors")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("varied", [(), (*PLAIN, "teacher.views=1")], ids=["views", "plain"])
def test_training_is_that_with_a_cache_made_before(student: Path, data: Path, varied: Any, dtype: str) -> None:
    settings = (*varied, f"teacher.cache_dtype={dtype}")
    filled = run_of(student, "filled", *settings)
    cache(configs.load(student, ["teacher.cache=first", *settings]))
    given = run_of(student, "given", "teacher.cache=first", *settings)
    assert losses(filled) == pytest.approx(losses(given), rel=1e-5)
    for key, value in weights(filled).items():
        torch.testing.assert_close(value, weights(given)[key], rtol=1e-3, atol=1e-4)
    assert len(list(data.glob("auto-*.cache.json"))) == 1
    assert not list(data.glob("*.journal"))
