"""configs/paper.yaml: each of its switches, uncommented, loads and trains."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pipeline import config as configs
from pipeline.config.shipped import SHIPPED
from pipeline.train import train

TEXT = (SHIPPED / "paper.yaml").read_text()
LOSSES = {"global_contrast": 5, "local_transport": 3}
"""And how many switches each has."""


def switches() -> dict[str, list[str]]:
    """Loss -> its commented lines."""
    found: dict[str, list[str]] = {}
    for line in TEXT.splitlines():
        if loss := re.match(r"  (\w+):", line):
            current = found.setdefault(loss[1], [])
        elif re.match(r"    # \w+: ", line):
            current.append(line)
    return {loss: lines for loss, lines in found.items() if lines}


def uncommented(*lines: str) -> str:
    """The config with these switches on; a line that sets the same key, just above, gives way."""
    text = TEXT
    for line in lines:
        key = line.split()[1]
        text = re.sub(rf"(    {key} .*\n)?{re.escape(line)}", line.replace("# ", "", 1), text)
    return text


SINGLE = [(loss, line) for loss, lines in switches().items() for line in lines]
TOGETHER = [line for _, line in SINGLE if "plan_gradient" not in line]


@pytest.fixture
def overrides(tmp_path: Path, runs: Path, shapes: Path) -> list[str]:
    small = ["data.batch_size=16", "data.workers=0", "train.steps=4", "train.warmup=1", "train.log_every=2"]
    places = [f"run={tmp_path / 'run'}", f"data.shards={shapes}", f"teacher.run={runs / 'teacher'}"]
    return [*small, *places, "data.label_fraction=0.5", "student.encoder.size=16", "student.encoder.width=4"]


def trained(text: str, tmp_path: Path, overrides: list[str]) -> list[dict[str, float]]:
    path = tmp_path / "paper.yaml"
    path.write_text(text)
    lines = (train(configs.load(path, overrides)) / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "loss" in row]


def test_the_switches_are_those_that_its_head_promises() -> None:
    assert {loss: len(lines) for loss, lines in switches().items()} == LOSSES


@pytest.mark.parametrize(
    ("loss", "line"), SINGLE, ids=lambda value: value.split("#")[1].strip() if "#" in value else value
)
def test_each_switch_loads_and_trains(loss: str, line: str, tmp_path: Path, overrides: list[str]) -> None:
    _, key, value = line.split()[:3]
    text = uncommented(line)
    rows = trained(text, tmp_path, overrides)
    assert len(rows) == 2
    resolved = configs.load(tmp_path / "run" / "config.yaml").losses[loss]
    assert str(resolved[key.rstrip(":")]).lower() == value
    assert all(abs(row[f"loss/{name}"]) < 1e4 for row in rows for name in LOSSES)


def test_the_switches_combine(tmp_path: Path, overrides: list[str]) -> None:
    rows = trained(uncommented(*TOGETHER), tmp_path, overrides)
    assert all(row["local_transport/plan_diagonal"] <= 1.001 for row in rows)


def test_as_it_stands_it_trains(tmp_path: Path, overrides: list[str]) -> None:
    assert len(trained(TEXT, tmp_path, overrides)) == 2
