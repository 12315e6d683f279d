"""The guard against collapse: what it measures, what it lowers, and that a run can be stopped and resumed around it."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from losses.base import Batch, Dims, Features, Loss
from pipeline import config as configs
from pipeline.data.source import open_split
from pipeline.data.stream import TrainStream, loader
from pipeline.models.build import build_model
from pipeline.models.distillation import Distillation
from pipeline.runs.checkpoint import list_checkpoints
from pipeline.train import guard as guarding
from pipeline.train import train

TEACHER = "teacher: {modality: rgb, encoder: {name: cnn5, width: 4, size: 16, weights: random}}"
DRIVEN = "  cross_entropy: {}\n  test_guard:Alike: {weight: 300}"
STEPS = ["train.steps=30", "train.log_every=5", "train.checkpoint_every=10", "train.keep_checkpoints=9"]


class Alike(Loss):
    """What collapses a student for certain: it draws all features to their mean."""

    def __init__(self, student: Dims, teacher: Dims) -> None:
        super().__init__()

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        return (student.pooled - student.pooled.mean(0)).norm(dim=1).mean()


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarding, "EVERY", 5)


def model_and_batch(config: configs.Config) -> tuple[Distillation, dict[str, Any]]:
    model = build_model(config)
    stream = TrainStream(open_split(config.data.shards, "train", "label"), model.views, batch=16)
    return model, next(iter(loader(stream, 0, torch.device("cpu"))))


def log(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_file(run / "student" / "model.safetensors") for run in (one, other))
    return all(torch.equal(first[key], second[key]) for key in first)


LOSSES = """\
  cross_entropy: {}
  kd: {weight: 2}
  cosine: {}
  wcord: {dim: 8, queue: 32, relational: 0.5}
"""


def test_pulls_are_the_weighted_gradients_of_every_part(make_config: Any, tmp_path: Path) -> None:
    run = train(configs.load(make_config("teacher"), ["student.modality=rgb", "train.steps=2"]))
    config = configs.load(make_config("run", f"teacher: {{run: {run}}}", LOSSES))
    model, batch = model_and_batch(config)
    output = model(batch, traced=True)
    found = output.trace.pulls()
    parts = ("global_weight", "local_weight", "relational")
    assert set(found) == {(n, "weight") for n in ("cross_entropy", "kd", "cosine")} | {("wcord", p) for p in parts}
    assert all(parameter.grad is None for parameter in model.parameters())

    # Written out: class scores are a linear function of the pooled features.
    pooled = output.pooled["student"].requires_grad_()
    student = Features(pooled, logits=model.student.head(pooled))  # type: ignore[operator, misc]
    teacher = model.teach(batch)
    for name, weight in (("cross_entropy", 1), ("kd", 2)):
        (gradient,) = torch.autograd.grad(model.losses[name](student, teacher, batch), pooled, retain_graph=True)
        assert found[name, "weight"] == pytest.approx(float(weight * gradient.norm()), rel=1e-4)
    output.loss.backward()
    assert any(parameter.grad is not None for parameter in model.student.parameters())


def test_what_is_lowered_pulls_less_and_a_trace_changes_nothing(make_config: Any) -> None:
    losses = "  local_transport: {relational: 0.5}"
    config = configs.load(make_config("run", TEACHER, losses))
    model, batch = model_and_batch(config)
    plain, traced = model(batch), model(batch, traced=True)
    before = traced.trace.pulls()
    model.lowered = {("local_transport", "relational"): 0.1}
    lowered = model(batch, traced=True)
    after = lowered.trace.pulls()
    assert plain.trace is None
    assert traced.loss.item() == pytest.approx(plain.loss.item(), rel=0.01)  # running statistics move
    assert after["local_transport", "relational"] == pytest.approx(
        0.1 * before["local_transport", "relational"], rel=0.1
    )
    assert lowered.loss.item() < traced.loss.item()


def test_pulls_are_the_same_with_gradient_caching(make_config: Any) -> None:
    """Features, logits and maps then come out of one function, without a graph between them."""
    path = make_config("run", TEACHER, "  cross_entropy: {}\n  cosine: {}\n  at: {}")
    found = []
    for parts in ("null", "16"):
        model, batch = model_and_batch(configs.load(path, [f"train.micro_batch={parts}"]))
        output = model(batch, traced=True)
        output.loss.backward(retain_graph=True)
        found.append(output.trace.pulls())
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert all(pull > 0 for pull in found[0].values())


def test_a_driven_collapse_is_named_lowered_and_said_once(make_config: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(configs.load(make_config("run", TEACHER, DRIVEN), STEPS))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]
    assert sum("test_guard:Alike.weight` (" in line for line in said) == 1, said
    assert "student: " in said[0]
    assert "Lower `losses.test_guard:Alike.weight` or `train.learning_rate`" in said[0]
    assert "it is multiplied by" in said[0]
    factors = [row.get("guard/test_guard:Alike.weight", 1.0) for row in log(run) if "loss" in row]
    assert factors == sorted(factors, reverse=True)
    assert factors[0] == 1.0
    assert guarding.LEAST <= factors[-1] <= guarding.BY
    row = log(run)[-1]
    lowered = row["loss/cross_entropy"] + 300 * factors[-1] * row["loss/test_guard:Alike"]
    assert row["loss"] == pytest.approx(lowered, rel=0.02)


def test_switched_off_it_still_names_the_cause(make_config: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(configs.load(make_config("run", TEACHER, DRIVEN), [*STEPS, "train.guard=false"]))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]
    assert sum("Lower `losses.test_guard:Alike.weight`" in line for line in said) == 1
    assert "it is multiplied by" not in " ".join(said)
    assert not any(key.startswith("guard/") for row in log(run) for key in row)


def test_tasks_and_healthy_terms_are_left_alone(make_config: Any, capsys: pytest.CaptureFixture[str]) -> None:
    losses = "  cross_entropy: {}\n  cosine: {weight: 3}"
    run = train(configs.load(make_config("run", TEACHER, losses), [*STEPS, "train.learning_rate=0.02"]))
    assert not any(key.startswith("guard/") for row in log(run) for key in row)
    assert "it is multiplied by" not in capsys.readouterr().err
    alone = train(configs.load(make_config("alone", "", "  cross_entropy: {weight: 300}"), STEPS))
    assert not any(key.startswith("guard/") for row in log(alone) for key in row)


@pytest.mark.parametrize("stop", [10, 20])
def test_a_guarded_run_resumes_to_the_same_bits_and_says_nothing_twice(
    make_config: Any, stop: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    whole = train(configs.load(make_config("whole", TEACHER, DRIVEN), STEPS))
    cut = Path(str(whole).replace("whole", "cut"))
    shutil.copytree(whole, cut)
    for checkpoint in list_checkpoints(cut / "checkpoints"):
        if int(checkpoint.name[5:]) > stop:
            shutil.rmtree(checkpoint)
    shutil.rmtree(cut / "student")
    said = [(record.levelno, record.message) for record in caplog.records]
    then = next(place for place, (_, message) in enumerate(said) if message.startswith(f"step {stop}/"))
    caplog.clear()
    train(configs.load(make_config("cut", TEACHER, DRIVEN), STEPS), resume=True)
    again = [(record.levelno, record.message) for record in caplog.records]
    assert same_weights(whole, cut)
    assert [one for one in again if one[0] == logging.WARNING] == [
        one for one in said[then:] if one[0] == logging.WARNING
    ]
    kept = [{k: v for k, v in row.items() if k.startswith(("guard/", "student/"))} for row in log(whole)]
    assert kept == [{k: v for k, v in row.items() if k.startswith(("guard/", "student/"))} for row in log(cut)]


def test_it_does_not_depend_on_when_lines_are_logged(make_config: Any) -> None:
    runs = [
        train(configs.load(make_config(f"every{every}", TEACHER, DRIVEN), [*STEPS, f"train.log_every={every}"]))
        for every in (3, 30)
    ]
    assert same_weights(*runs)


def test_a_teacher_that_says_nothing_is_named_once_and_at_once(
    make_config: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    teach = Distillation.teach

    def constant(model: Distillation, batch: Batch) -> Features | None:
        features = teach(model, batch)
        return features and Features(torch.ones_like(features.pooled))

    monkeypatch.setattr(Distillation, "teach", constant)
    monkeypatch.setattr("pipeline.train.loop.check_first_batch", lambda *_: None)  # which would refuse it
    caplog.set_level(logging.INFO)
    train(configs.load(make_config("run", TEACHER, "  cross_entropy: {}\n  cosine: {}"), ["train.steps=12"]))
    said = "\n".join(caplog.messages)
    before, _, after = said.partition("teacher: its features are the same for all samples of a batch")
    assert "step 8/" in after
    assert "step 8/" not in before
    assert "teacher: it" not in after


def test_a_run_goes_on_from_a_checkpoint_without_a_guard(make_config: Any) -> None:
    config = configs.load(make_config())
    guard = guarding.Guard(build_model(config), config, 10)
    guard.load_state_dict({})
    assert guard.told() == {}
