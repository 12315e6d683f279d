"""The error that ends a launch is printed once on a machine, and no other is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.say_once import say_error

ROOT = Path(__file__).parents[2]


def say_as(rank: int, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process that torchrun has started."""
    own = folder / "attempt_0" / str(rank) / "error.json"
    own.parent.mkdir(parents=True, exist_ok=True)
    for name, value in {"RANK": str(rank), "WORLD_SIZE": "2", "TORCHELASTIC_ERROR_FILE": str(own)}.items():
        monkeypatch.setenv(name, value)
    say_error(message)


def test_the_same_error_is_printed_by_the_first_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank, message in ((1, "no such shard"), (0, "no such shard"), (0, "disk full"), (1, "disk full")):
        say_as(rank, message, tmp_path, monkeypatch)
    assert capsys.readouterr().err == "[rank 1] error: no such shard\nerror: disk full\n"
    say_as(1, "no such shard", tmp_path / "another launch", monkeypatch)
    assert capsys.readouterr().err == "[rank 1] error: no such shard\n"


@pytest.mark.parametrize("file", ["", "error.json", "/nowhere/attempt_0/1/error.json"])
def test_without_a_common_folder_every_process_prints_it(
    file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", file)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        say_error("no such shard")
    assert capsys.readouterr().err == "error: no such shard\n[rank 1] error: no such shard\n"


@pytest.mark.slow
def test_two_processes_of_accelerate_print_it_once(make_config: Any) -> None:
    launch = [str(Path(sys.executable).with_name("accelerate")), "launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "wcord"]
    done = subprocess.run(
        [*launch, "train", str(make_config()), "data.batch_size=15"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode
    assert done.stderr.count("data.batch_size: the global batch 15 must be divisible") == 1
