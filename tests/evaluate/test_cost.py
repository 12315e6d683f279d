"""What a run costs is measured where it happens, and survives an interruption."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import config as configs
from pipeline.common.resources import energy_joules, peak_memory_mib
from pipeline.evaluate.cost import multiply_adds, training_cost
from pipeline.models.network import build_network
from pipeline.train import train


def test_the_peak_of_memory_grows_with_what_is_held() -> None:
    before = peak_memory_mib(torch.device("cpu"))
    held = np.ones(2**27 + int(before * 2**20), np.uint8)  # 128 MiB above the peak so far
    assert 100 < peak_memory_mib(torch.device("cpu")) - before < 2 * held.size / 2**20
    del held
    assert peak_memory_mib(torch.device("cpu")) >= before + 100


def test_seconds_go_on_where_an_interrupted_run_stopped(make_config: Any) -> None:
    path = make_config()
    run = train(configs.load(path, ["train.steps=10"]))
    log = run / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    log.write_text("".join(json.dumps(row | {"seconds": 1000.0 + row["step"]}) + "\n" for row in rows))
    train(configs.load(path, ["train.steps=12"]), resume=True)
    cost = training_cost(run, 16)
    assert 1010 < cost["train/seconds"] < 1100
    assert cost["train/peak_memory_mib"] > 50


def test_an_old_log_tells_no_cost(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    assert training_cost(tmp_path, 16) == {}


def test_the_gpu_tells_its_energy_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    told = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: {"GPU-12ab": 5000}[handle],
    )
    monkeypatch.setitem(sys.modules, "pynvml", told)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="12ab"))
    assert energy_joules(torch.device("cuda")) == 5.0
    assert energy_joules(torch.device("cpu")) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    assert energy_joules(torch.device("cuda")) is None


@torch.no_grad()
def test_multiply_adds_of_convolutions_are_counted_by_hand() -> None:
    network = build_network({"name": "rgb"}, {"name": "cnn5", "width": 4, "size": 16}, None, "student").eval()
    seen = []
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda m, _, out: seen.append(out[0].numel() * m.weight[0].numel()))
    assert multiply_adds(network, torch.zeros(1, 3, 16, 16, dtype=torch.uint8)) == sum(seen) > 0


@torch.no_grad()
def test_fused_attention_is_counted_too() -> None:
    spec = {"name": "text_transformer", "width": 32, "depth": 2, "heads": 2}
    network = build_network({"name": "text"}, spec, None, "student").eval()
    batch = {"ids": torch.ones(1, 16, dtype=torch.int64), "mask": torch.ones(1, 16, dtype=torch.bool)}
    matrices = [p for name, p in network.named_parameters() if "layers" in name and p.ndim == 2]
    attention = 2 * 2 * 16 * 16 * 32  # two layers; the scores and the sum that they weigh
    assert multiply_adds(network, batch) == 16 * sum(p.numel() for p in matrices) + attention
