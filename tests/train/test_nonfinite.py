"""Steps that are not finite, from end to end: the run goes on, and what it saves is finite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.models.distillation import Distillation
from pipeline.runs.checkpoint import list_checkpoints
from pipeline.train import loop as training
from pipeline.train import train
from pipeline.train.signals import Stop, Stopped

LOSSES = {"crd": "{negatives: 8}"}


@pytest.fixture
def teacher(make_config: Any) -> str:
    run = train(configs.load(make_config("teacher"), ["student.modality=rgb", "train.steps=2"]))
    return f"teacher: {{run: {run}}}"


def spoil(monkeypatch: pytest.MonkeyPatch, spoilt: dict[int, str]) -> None:
    """Let the student see, or the teacher say, what is not finite at these steps."""
    steps, forward = iter(range(1, 99)), Distillation.forward

    def with_nan(self: Distillation, batch: Any, **keywords: Any) -> Any:
        side = spoilt.get(next(steps))
        if side == "student":
            batch["student"][3] = torch.nan
        if side == "teacher":
            batch["teacher"] = self.teach(batch)
            batch["teacher"].pooled[3] = batch["teacher"].logits[3] = torch.nan
        return forward(self, batch, **keywords)

    monkeypatch.setattr(Distillation, "forward", with_nan)


def saved(run: Path) -> dict[str, torch.Tensor]:
    return load_file(list_checkpoints(run / "checkpoints")[-1] / "model.safetensors")


@pytest.mark.parametrize("name", ["wcord", "crd", "local_transport", "cosine", "wkd_logit"])
def test_a_run_goes_on_after_a_step_that_is_not_finite(
    name: str, make_config: Any, teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_config("student", teacher, f"  {name}: {LOSSES.get(name, '{}')}")
    # The first, those of log lines and the last, which is saved, are among them.
    spoil(monkeypatch, {1: "teacher", 2: "student", 6: "teacher", 7: "student", 12: "student"})
    run = train(configs.load(path, ["train.log_every=2"]))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["nonfinite_steps"] == 5
    assert [row["step"] for row in rows] == [4, 6, 8, 10, 12]
    assert all(row["loss"] == row["loss"] for row in rows)
    assert saved(run)
    assert all((value < torch.inf).all() for value in saved(run).values())


@pytest.mark.parametrize("name", ["student.encoder", "losses.cosine"])
def test_statistics_that_are_not_finite_are_never_saved(
    name: str, make_config: Any, teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Distillation.forward

    def with_nan(self: Distillation, batch: Any, **keywords: Any) -> Any:
        found = forward(self, batch, **keywords)
        next(b for b in self.get_submodule(name).buffers() if b.is_floating_point()).fill_(torch.nan)
        return found

    monkeypatch.setattr(Distillation, "forward", with_nan)
    config = configs.load(make_config("student", teacher, "  cosine: {}"), ["train.steps=1"])
    with pytest.raises(UserError, match=rf"step 1: .* not finite \({name}.*no checkpoint was written"):
        train(config)
    assert not list_checkpoints(Path(config.run) / "checkpoints")


def test_a_step_after_a_checkpoint_is_undone_to_what_the_checkpoint_holds(
    make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where several processes average their statistics for it; else a resumed run would go on from others."""

    def average(network: Any, accelerator: Any) -> None:
        for name, buffer in network.named_buffers():
            if "running_" in name:
                buffer.mul_(0.5)

    monkeypatch.setattr("pipeline.train.resume.average_buffers", average)
    spoil(monkeypatch, {6: "student"})
    whole = saved(train(configs.load(make_config("whole"), ["train.steps=7", "train.checkpoint_every=5"])))
    spoil(monkeypatch, {})
    stopped = configs.load(make_config("stopped"), ["train.steps=7", "train.checkpoint_every=5"])
    steps = iter(range(1, 99))
    monkeypatch.setattr(Stop, "asked", lambda self, accelerator: next(steps) == 5)
    with pytest.raises(Stopped):
        train(stopped)
    spoil(monkeypatch, {1: "student"})  # the sixth
    torch.testing.assert_close(saved(train(stopped, resume=True)), whole, rtol=0, atol=0)


@pytest.mark.parametrize("stop", [4, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 7))])
def test_the_scale_of_fp16_goes_on_where_it_was(make_config: Any, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    """Accelerate scales on GPUs only; torch's scaler works on a CPU too. Too large at first, it skips five steps."""
    start = training.start_accelerator

    def scaling(config: configs.Config) -> Accelerator:
        monkeypatch.setattr(AcceleratorState, "_shared_state", {})  # of this run alone
        accelerator = start(config)
        accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22, growth_interval=2)
        return accelerator

    def scale(run: Path) -> Any:
        return torch.load(list_checkpoints(run / "checkpoints")[-1] / "optimizer.pt", weights_only=True)["scaler"]

    monkeypatch.setattr(training, "start_accelerator", scaling)
    whole = train(configs.load(make_config("whole")))
    stopped, steps = configs.load(make_config("stopped")), iter(range(1, 99))
    monkeypatch.setattr(Stop, "asked", lambda self, accelerator: next(steps) == stop)
    with pytest.raises(Stopped):
        train(stopped)
    assert scale(Path(stopped.run)) != scale(whole)
    run = train(stopped, resume=True)
    assert scale(run) == scale(whole)
    torch.testing.assert_close(saved(run), saved(whole), rtol=0, atol=0)
    last = json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["nonfinite_steps"] >= 5


def test_steps_that_were_not_taken_before_a_signal_stay_counted(
    make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {5: "student"})
    config, steps = configs.load(make_config(), ["train.log_every=4"]), iter(range(1, 99))
    monkeypatch.setattr(Stop, "asked", lambda self, accelerator: next(steps) == 6)
    with pytest.raises(Stopped):
        train(config)
    run = train(config, resume=True)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row.get("nonfinite_steps")) for row in rows] == [(4, None), (6, 1), (8, 1), (12, 1)]
