"""What a launcher may ask for, and the shipped Accelerate configs, read by Accelerate's own loader."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from launching import Started

from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.train import train
from pipeline.train.launch import start_accelerator

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))
EXPECTED = {"one_gpu": (1, 1), "eight_gpus": (8, 1), "two_machines": (16, 2), "fsdp": (8, 1)}


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is not supported: its optimiser step is part of"),
        ({"ACCELERATE_USE_FSDP": "true"}, "set `fsdp_version: 2`"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "only shards models on GPUs"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "set train.micro_batch"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "Set train.compile=true"),
    ],
)
def test_a_launch_that_cannot_be_is_refused(
    make_config: Any, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], reason: str
) -> None:
    for name, value in ({"ACCELERATE_USE_CPU": "true"} | environment).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=reason):
        start_accelerator(configs.load(make_config()))


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_process_that_the_others_do_not_join_says_so(make_config: Any, rank: str) -> None:
    """They ended before, or wait elsewhere."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = Started(["train", str(make_config()), "train.timeout=3"], environment=place)
    assert started.wait(60) == 2
    said = started.output()[1]
    assert f"error: the processes did not connect to 127.0.0.1:{port} within 3 s (train.timeout)" in said
    assert "Traceback" not in said


def test_runs_of_one_process_may_differ_in_precision(make_config: Any) -> None:
    for precision in ("fp32", "bf16", "auto"):
        run = train(configs.load(make_config(precision), [f"train.precision={precision}", "train.steps=1"]))
        assert (run / "student" / "model.safetensors").is_file()


def test_configs_are_shipped_for_one_gpu_eight_and_two_machines() -> None:
    assert {path.stem for path in SHIPPED} == EXPECTED.keys()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_accelerate_reads_the_shipped_configs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config_from_file(str(path))
    assert (config.num_processes, config.num_machines) == EXPECTED[path.stem]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "-m", "pipeline", "train"])
    arguments, _, _ = _validate_launch_command(arguments)
    assert arguments.use_fsdp == (path.stem == "fsdp")
    assert not arguments.use_deepspeed
    if arguments.use_fsdp:
        assert int(arguments.fsdp_version) == 2


@pytest.mark.slow
def test_the_config_of_one_gpu_launches_on_a_cpu_too(make_config: Any) -> None:
    path = ROOT / "configs" / "accelerate" / "one_gpu.yaml"
    command = ["-m", "accelerate.commands.launch", "--cpu", "--config_file", str(path), "-m", "pipeline", "train"]
    done = subprocess.run(
        [sys.executable, *command, str(make_config())],
        cwd=ROOT,
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("asked", "told"), [("bf16", True), ("no", False)])
def test_a_precision_of_the_launcher_that_is_ignored_is_told(
    make_config: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, asked: str, told: bool
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    start_accelerator(configs.load(make_config(), ["train.precision=fp32"]))
    assert caplog.text.count("bf16 from the launcher is ignored; train.precision sets fp32") == told
