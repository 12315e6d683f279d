"""The moving average of the student's weights."""

from __future__ import annotations

import copy
import shutil
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.models.network import build_network
from pipeline.runs.checkpoint import list_checkpoints
from pipeline.train import train
from pipeline.train.activation_checkpointing import blocks, checkpoint_gradients, encoders, forget_checkpoints
from pipeline.train.callbacks import Callback
from pipeline.train.callbacks.ema import EMA


class Record(Callback):
    """Keeps the trained weights of every step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_start(self, context: Any) -> None:
        self.on_step(context)

    def on_step(self, context: Any) -> None:
        self.weights.append({k: v.clone() for k, v in context.student.state_dict().items()})


def test_what_is_saved_and_validated_is_the_average_and_what_is_trained_is_not(make_config: Any) -> None:
    record = Record()
    ema = "train.callbacks=[{name: ema, decay: 0.5}]"
    run = train(configs.load(make_config(), [ema, "evaluation.every=12"]), callbacks=[record])
    expected = record.weights[0]
    for number, weights in enumerate(record.weights[1:], 1):
        decay = min(0.5, (1 + number) / (10 + number))
        mixed = {k: decay * v + (1 - decay) * weights[k] for k, v in expected.items() if v.is_floating_point()}
        expected = weights | mixed
    for saved in (load_file(run / folder / "model.safetensors") for folder in ("student", "best")):
        torch.testing.assert_close(saved, expected)
    plain = train(configs.load(make_config("plain")))
    trained = load_file(list_checkpoints(run / "checkpoints")[-1] / "model.safetensors")
    same = load_file(list_checkpoints(plain / "checkpoints")[-1] / "model.safetensors")
    assert all(torch.equal(trained[k], same[k]) for k in same)


def test_sharded_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any weight may be sharded; FSDP itself runs on GPUs only."""
    student = torch.nn.Linear(2, 2)
    monkeypatch.setattr("pipeline.train.callbacks.ema.is_sharded", lambda tensor: tensor is student.bias)
    with pytest.raises(UserError, match="ema: not supported with FSDP"):
        EMA().on_start(SimpleNamespace(student=student))  # type: ignore[arg-type]


def test_a_resumed_average_has_the_same_bits(make_config: Any) -> None:
    path, ema = make_config(), ["train.callbacks=[ema]"]
    run = train(configs.load(path, ema))
    whole = load_file(run / "student" / "model.safetensors")
    shutil.rmtree(list_checkpoints(run / "checkpoints")[-1])
    shutil.rmtree(run / "student")
    train(configs.load(path, ema), resume=True)
    resumed = load_file(run / "student" / "model.safetensors")
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_the_average_of_recomputed_blocks_runs_its_own_weights() -> None:
    """A deep copy of a block that is recomputed in the backward would run the block of the original."""
    network = build_network({"name": "rgb"}, {"name": "resnet", "size": 32}, None, "student")
    checkpoint_gradients(network)
    twin = copy.deepcopy(network).eval()
    forget_checkpoints(twin)
    assert blocks(encoders(twin)[0])
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        before = twin(x).pooled
        for p in network.parameters():
            p.zero_()
        assert torch.equal(twin(x).pooled, before)
