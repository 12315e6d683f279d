"""Two processes that write one folder: the second is told who has it, and nothing is mixed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import Started
from safetensors.torch import load_file

from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.common.files import host
from pipeline.common.owner import owned
from pipeline.train.cache_teacher import cache


def start(path: Path, *arguments: str, ranks: int = 1, **environment: str) -> Started:
    return Started(["train", str(path), "train.trackers=[]", *arguments], ranks=ranks, environment=environment)


def wait_for(file: Path, started: Started) -> None:
    end = time.monotonic() + 60
    while not file.exists():
        assert started.poll() is None, started.output()
        assert time.monotonic() < end
        time.sleep(0.02)


def student(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "student" / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [True, False])
def test_a_second_training_is_refused(make_config: Any, tmp_path: Path, stopped: bool) -> None:
    path, run = make_config(), tmp_path / "run"
    assert start(path, f"run={tmp_path / 'alone'}", "train.steps=300").wait() == 0
    first = start(path, "train.steps=300")
    wait_for(tmp_path / ".run.owner", first)
    pid = first.processes[0].pid or 0
    if stopped:
        os.kill(pid, signal.SIGSTOP)
    for arguments in (["seed=1", "--overwrite"], ["--resume"]) if stopped else (["seed=1", "--overwrite"],):
        second = start(path, *arguments)
        assert second.wait(60) == 2
        assert f"process {pid} on host {host()} is writing to it" in second.output()[1]
    os.kill(pid, signal.SIGCONT)
    assert first.wait() == 0
    alone = student(tmp_path / "alone")
    assert all(torch.equal(alone[name], value) for name, value in student(run).items())
    assert configs.load(run / "config.yaml").seed == 0
    assert not list(tmp_path.glob(".run.*"))


@pytest.mark.slow
def test_the_folder_of_a_killed_training_is_free(make_config: Any, tmp_path: Path) -> None:
    first = start(make_config(), "train.steps=4000", "data.workers=1")
    wait_for(tmp_path / "run" / "metrics.jsonl", first)
    os.kill(first.processes[0].pid or 0, signal.SIGKILL)  # its loader processes end by themselves
    first.processes[0].join()
    second = start(make_config(), "seed=1", "--overwrite")
    assert second.wait() == 0, second.output()
    assert configs.load(tmp_path / "run" / "config.yaml").seed == 1


@pytest.mark.slow
def test_all_ranks_end_when_the_folder_is_refused(make_config: Any, tmp_path: Path) -> None:
    path = make_config()
    with owned(tmp_path / "run"):
        both = start(path, ranks=2)
        assert both.wait(60) == 2
        assert f"process {os.getpid()} on host {host()}" in both.output()[1]
    both = start(path, ranks=2)
    assert both.wait() == 0, both.output()


@pytest.mark.slow
def test_empty_variables_of_a_launcher_count_as_unset(make_config: Any) -> None:
    alone = start(make_config(), RANK="", LOCAL_RANK="", WORLD_SIZE="", MASTER_ADDR="", MASTER_PORT="")
    assert alone.wait() == 0, alone.output()


def test_a_rank_that_does_not_evaluate_says_so() -> None:
    other = Started(["evaluate", "nowhere"], environment={"RANK": "1", "WORLD_SIZE": "2"})
    assert other.wait(60) == 0
    assert "RANK=1 is set: under a launcher, only rank 0 evaluates" in other.output()[1]


@pytest.mark.slow
def test_another_cache_of_the_name_is_refused(runs: Path, tmp_path: Path) -> None:
    config = configs.load(runs / "student" / "config.yaml", ["teacher.cache=held"])
    folder = Path(config.data.shards)
    with owned(folder / "held", "another teacher"), pytest.raises(UserError, match=f"process {os.getpid()} on host"):
        cache(config)
    assert not list(folder.glob("*held*"))
