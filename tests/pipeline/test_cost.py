"""What a run costs is measured where it happens, and survives an interruption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import config as configs
from pipeline.cost import peak_memory_mib, training_cost
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
    cost = training_cost(run)
    assert 1010 < cost["train/seconds"] < 1100
    assert cost["train/peak_memory_mib"] > 50


def test_an_old_log_tells_no_cost(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    assert training_cost(tmp_path) == {}
