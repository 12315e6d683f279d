"""The FLOPs of a step that the log implies are those by hand, and counting them changes no weight."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import launch
from safetensors.torch import load_file

from pipeline import config as configs
from pipeline.models.network import load_network
from pipeline.train import train
from pipeline.train.cache_teacher import cache
from pipeline.train.throughput import Throughput

BATCH = 16
LOSSES = "  cross_entropy: {}\n  kd: {}"


@pytest.fixture
def _two_threads() -> Iterator[None]:
    """The teacher then runs ahead, in a thread of its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def run_config(path: Path, *overrides: str) -> Path:
    return train(configs.load(path, ["train.steps=4", "train.log_every=2", "evaluation.every=0", *overrides]))


def rows(run: Path) -> list[dict[str, float]]:
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in logged if "loss" in row]


def step_flops(run: Path) -> int:
    """The FLOPs of a step of the first process, which are the same in every line."""
    counts = {round(1e12 * row["tflops"] * BATCH / row["samples_per_second"]) for row in rows(run)}
    assert len(counts) == 1
    return counts.pop()


def by_hand(run: Path, channels: int) -> tuple[int, int]:
    """FLOPs of forward and backward of a batch: products of the outputs of each layer with the weights behind each."""
    network = load_network(run / "student").train()
    forward: list[int] = []
    for layer in network.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            layer.register_forward_hook(lambda m, _, out: forward.append(2 * out.numel() * m.weight[0].numel()))
    dtype = torch.uint8 if channels == 3 else torch.float32
    network(torch.zeros(BATCH, channels, 16, 16, dtype=dtype))
    return sum(forward), 2 * sum(forward) - forward[0]  # the input needs no gradient


def test_a_supervised_step(make_config: Any) -> None:
    run = run_config(make_config(), "student.modality=rgb")
    assert step_flops(run) == sum(by_hand(run, 3))
    assert "mfu" not in rows(run)[0]


def test_accumulation_and_gradient_caching(make_config: Any) -> None:
    settings = ("student.modality=rgb", "train.log_every=1")
    whole = run_config(make_config("whole"), *settings)
    parts = run_config(make_config("parts"), *settings, "train.accumulate=4")
    cached = run_config(make_config("cached"), *settings, "train.micro_batch=4")
    forward, backward = by_hand(whole, 3)
    assert step_flops(whole) == step_flops(parts) == forward + backward
    assert step_flops(cached) == 2 * forward + backward


@pytest.mark.usefixtures("_two_threads")
def test_a_teacher_counts_unless_it_is_cached(make_config: Any, shapes: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(shapes, tmp_path / "data"))  # the cache is written into it
    teacher = run_config(make_config("teacher"), "student.modality=rgb")
    path = make_config("student", f"teacher: {{run: {teacher}}}", LOSSES, shards=data)
    ahead = run_config(path)
    torch.set_num_threads(1)
    in_turn = run_config(path, f"run={tmp_path / 'in_turn'}")
    cache(configs.load(path, ["teacher.cache=first"]))
    cheap = run_config(path, f"run={tmp_path / 'cheap'}", "teacher.cache=first")
    student = sum(by_hand(cheap, 1))
    assert step_flops(cheap) == student
    assert step_flops(ahead) == step_flops(in_turn) == student + by_hand(teacher, 3)[0]


def test_a_resumed_run_counts_again(make_config: Any) -> None:
    path = make_config()
    run = run_config(path)
    before = step_flops(run)
    train(configs.load(path, ["train.steps=6", "train.log_every=2", "evaluation.every=0"]), resume=True)
    assert len(rows(run)) == 3
    assert step_flops(run) == before


@pytest.mark.parametrize("extra", [(), ("train.micro_batch=8",)])
def test_counting_changes_no_weight(make_config: Any, monkeypatch: pytest.MonkeyPatch, extra: tuple[str, ...]) -> None:
    losses = "  cross_entropy: {}\n  wcord: {dim: 8, queue: 32}"
    teacher = f"teacher: {{run: {run_config(make_config('teacher'), 'student.modality=rgb')}}}"
    one = run_config(make_config("one", teacher, losses), *extra)
    monkeypatch.setattr(Throughput, "counting", lambda self: nullcontext())
    two = run_config(make_config("two", teacher, losses), *extra)
    assert "tflops" in rows(one)[0]
    assert "tflops" not in rows(two)[0]
    a, b = (load_file(run / "student" / "model.safetensors") for run in (one, two))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_share_of_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    throughput = Throughput(torch.device("cuda"), "bf16")
    with throughput.counting():
        torch.ones(100, 100) @ torch.ones(100, 100)
    throughput.end_step()
    with throughput.counting():
        torch.ones(100, 100) @ torch.ones(100, 100)  # not counted
    throughput.end_step()
    assert throughput.row(31.2e6) == pytest.approx({"tflops": 62.4, "mfu": 0.2})


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="inductor needs a C++ compiler")
def test_a_compiled_run_counts_the_same_and_changes_no_weight(
    make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("student.modality=rgb", "train.compile=true")
    run = run_config(make_config("one"), *settings)
    assert step_flops(run) == sum(by_hand(run, 3))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    monkeypatch.setattr(Throughput, "counting", lambda self: nullcontext())
    other = run_config(make_config("two"), *settings)
    a, b = (load_file(folder / "student" / "model.safetensors") for folder in (run, other))
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.slow
def test_two_processes_count_their_own_half(make_config: Any) -> None:
    path = make_config("two", "", "  cross_entropy: {}")
    done = launch(["train", str(path), "train.steps=4", "train.log_every=2", "student.modality=rgb"])
    assert done.returncode == 0, done.stderr
    run = path.with_name("two")
    assert step_flops(run) == sum(by_hand(run, 3)) // 2
