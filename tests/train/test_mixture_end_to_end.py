"""Runs on a packed and a foreign set together: shares in the log, and the same bits after any number of kills."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from foreign_shards import img2dataset
from launching import Started
from safetensors.torch import load_file
from shapes_dataset import write_dataset

from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.runs.checkpoint import list_checkpoints
from pipeline.train import train

STEPS = 60

CONFIG = """
run: {run}
data:
  shards:
    - {{path: {packed}, weight: 0.3}}
    - {{path: "{foreign}/*.tar", weight: 0.7}}
  sampling: {sampling}
  batch_size: 8
  workers: {workers}
  shuffle: 20
  flip: true
student: {{modality: rgb, encoder: {{name: cnn5, width: 4, size: 16}}}}
teacher: {{modality: rgb, encoder: {{name: cnn5, width: 4, size: 16, weights: random}}}}
losses: {{wcord: {{}}}}
train: {{steps: {steps}, log_every: 10, checkpoint_every: 1, keep_checkpoints: 3, learning_rate: 3.0e-3}}
"""

Config = Callable[..., Path]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    packed = write_dataset(tmp_path / "packed", {"train": [30, 10], "test": [6]})
    img2dataset(tmp_path / "foreign", [20, 1, 17])

    def make(run: str, sampling: str = "once", workers: int = 0) -> Path:
        path = tmp_path / f"{run}.yaml"
        places = {"steps": STEPS, "run": tmp_path / run, "packed": packed, "foreign": tmp_path / "foreign"}
        path.write_text(CONFIG.format(**places, sampling=sampling, workers=workers))
        return path

    return make


def weights(config: Path) -> dict[str, object]:
    return {k: v.tolist() for k, v in load_file(Path(configs.load(config).run) / "student/model.safetensors").items()}


def test_the_log_tells_what_was_drawn_of_each_source(config: Config) -> None:
    run = train(configs.load(config("run")))
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["drawn/shapes"] + last["drawn/foreign"] == STEPS * 8
    assert abs(last["drawn/shapes"] / (STEPS * 8) - 0.3) < 0.01


@pytest.mark.parametrize("sampling", ["once", "with_replacement"])
def test_a_run_that_stops_in_the_middle_goes_on_to_the_same_bits(config: Config, sampling: str) -> None:
    keep = ["train.keep_checkpoints=99"]
    whole = train(configs.load(config("whole", sampling), keep))
    cut = Path(shutil.copytree(whole, whole.parent / "cut"))
    for checkpoint in list_checkpoints(cut / "checkpoints"):
        if int(checkpoint.name[5:]) > 23:
            shutil.rmtree(checkpoint)
    shutil.rmtree(cut / "student")
    train(configs.load(config("cut", sampling), keep), resume=True)
    assert weights(config("cut")) == weights(config("whole"))


def test_other_shares_are_no_way_to_resume(config: Config) -> None:
    path = config("run")
    train(configs.load(path, ["train.steps=3"]))
    path.write_text(path.read_text().replace("weight: 0.3", "weight: 0.4"))
    with pytest.raises(UserError, match=r"mixture"):
        train(configs.load(path, ["train.steps=6"]), resume=True)


def test_the_split_to_evaluate_is_that_of_the_first_source(config: Config) -> None:
    with pytest.raises(UserError, match=r"evaluation.split: .*packed: split `val` has no samples"):
        train(configs.load(config("run"), ["evaluation.split=val"]))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("sampling", ["once", "with_replacement"])
def test_three_kills_at_random_steps_change_no_bit(config: Config, sampling: str, processes: int) -> None:
    assert start(config("whole", sampling, 1), processes).wait(300) == 0
    path, rng = config("cut", sampling, 1), random.Random(processes)
    checkpoints = Path(configs.load(path).run) / "checkpoints"
    killed = sorted(rng.sample(range(2, STEPS - 1), 3))
    for step in killed:
        running = start(path, processes)
        end = time.monotonic() + 120
        while not any(int(found.name[5:]) >= step for found in list_checkpoints(checkpoints)):
            assert running.poll() is None, "it ended before it was killed"
            assert time.monotonic() < end
            time.sleep(0.005)
        running.kill()
    assert start(path, processes).wait(300) == 0
    assert weights(path) == weights(config("whole"))


def start(config: Path, processes: int) -> Started:
    return Started(["--quiet", "train", str(config), "--resume"], ranks=processes)
