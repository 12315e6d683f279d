"""Gradient accumulation: parts of a batch add up to the whole, or are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import launch
from safetensors.torch import load_file

from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.train import train

PER_SAMPLE = "  cross_entropy: {}\n  kd: {weight: 2}\n  cosine: {standardise: false}\n  at: {}"
FEW = ("train.steps=3", "train.log_every=1", "data.batch_size=32", "data.label_fraction=0.5", "train.optimizer=sgd")


@pytest.fixture
def student(make_config: Any) -> Path:
    run = train(configs.load(make_config("teacher"), ["student.modality=rgb", "train.steps=4"]))
    path: Path = make_config("student", f"teacher: {{run: {run}}}", PER_SAMPLE)
    # Batch normalisation sees parts of the batch; a network without it shows that everything else is exact.
    text = path.read_text().replace("{name: cnn5, width: 4, size: 16}", "{name: 'plain_encoder:Plain', size: 16}")
    path.write_text(text)
    return path


PLAIN = """
from torch import nn
from losses import Features
from modalities.encoders.base import Encoder, Preprocessing


class Plain(Encoder):
    def __init__(self, channels: int, *, size: int = 16) -> None:
        super().__init__(Preprocessing.of(channels, size))
        self.dim, self.map_channels = 8, (6,)
        self.convolution, self.linear = nn.Conv2d(channels, 6, 3, stride=2), nn.Linear(6, 8)

    def forward(self, x):
        m = self.convolution(self.normalise(x)).relu()
        return Features(self.linear(m.mean((2, 3))), [m])
"""


@pytest.fixture(autouse=True)
def _plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain_encoder.py").write_text(PLAIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[2]}")


def outcome(run: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if k.startswith("loss") or k == "grad_norm"} for row in log]
    return load_file(run / "student" / "model.safetensors"), kept


def test_four_parts_of_eight_are_a_batch_of_32(student: Path) -> None:
    whole, parts = (
        outcome(train(configs.load(student, [*FEW, f"run={student.parent / str(n)}", f"train.accumulate={n}"])))
        for n in (1, 4)
    )
    torch.testing.assert_close(parts[0], whole[0], rtol=1e-5, atol=1e-6)
    assert whole[1] == [pytest.approx(row, rel=1e-5) for row in parts[1]]


@pytest.mark.slow
def test_parts_add_up_in_two_processes(student: Path) -> None:
    found = []
    for count in (1, 4):
        run = student.parent / str(count)
        done = launch(["train", str(student), *FEW, f"run={run}", f"train.accumulate={count}"])
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(outcome(run))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=1e-6)
    assert found[0][1] == [pytest.approx(row, rel=1e-5) for row in found[1][1]]


@pytest.mark.parametrize(("loss", "settings"), [("wcord", ""), ("cosine", ""), ("info_nce", ""), ("rkd", "")])
def test_a_loss_that_compares_samples_is_refused(make_config: Any, student: Path, loss: str, settings: str) -> None:
    path = make_config("other", f"teacher: {{run: {student.parent / 'teacher'}}}", f"  {loss}: {{{settings}}}")
    with pytest.raises(UserError, match=rf"losses\.{loss} compares the samples .*train\.micro_batch=4"):
        train(configs.load(path, ["train.accumulate=4"]))


def test_what_does_not_divide_is_refused(make_config: Any) -> None:
    with pytest.raises(UserError, match=r"data\.batch_size 16 is not a multiple of 3"):
        train(configs.load(make_config(), ["train.accumulate=3"]))
    with pytest.raises(UserError, match="both accumulate and micro_batch"):
        configs.load(make_config(), ["train.accumulate=2", "train.micro_batch=4"])
    with pytest.raises(UserError, match=r"cannot be combined with data\.unpaired: keep"):
        configs.load(make_config(), ["train.accumulate=2", "data.unpaired=keep"])
