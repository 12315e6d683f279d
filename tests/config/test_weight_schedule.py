"""The weight of a loss over the training: its shape, what a config may say of it, and that it is used."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.config.reference import explain_key
from pipeline.config.settings import Train
from pipeline.config.weight_schedule import DEFAULTS, factor
from pipeline.runs.checkpoint import list_checkpoints
from pipeline.train import train
from pipeline.train.schedule import Schedule


def factors(steps: int, steps_per_epoch: int = 1, **written: Any) -> list[float]:
    return [factor(DEFAULTS | written, step, steps, steps_per_epoch) for step in range(1, steps + 1)]


def test_the_warmup_is_linear_from_zero_and_then_the_weight_is_whole() -> None:
    assert factors(6, warmup=4, unit="steps") == [0.25, 0.5, 0.75, 1, 1, 1]


def test_the_decay_is_half_a_cosine_that_ends_at_zero() -> None:
    found = factors(100, decay="cosine", **{"from": 60}, unit="steps")
    assert found[:60] == [1] * 60
    assert found[79] == pytest.approx(0.5)
    assert found[60:] == sorted(found[60:], reverse=True)
    assert found[-1] == pytest.approx(0)


def test_epochs_are_steps_of_the_training_set() -> None:
    own = {"warmup": 2, "decay": "cosine", "from": 3}
    in_steps = own | {"warmup": 50, "from": 75, "unit": "steps"}
    assert factors(250, 25, **own) == factors(250, 25, **in_steps)


def test_the_published_schedules() -> None:
    """DKD rises over 20 epochs, WKD falls from epoch 150 of 240 on."""
    assert factors(240 * 781, 781, warmup=20)[10 * 781 - 1] == pytest.approx(0.5)
    assert factors(240 * 781, 781, decay="cosine", **{"from": 150})[195 * 781 - 1] == pytest.approx(0.5)


def test_every_step_has_the_weights_of_all_losses() -> None:
    losses = {"one": {"weight": 2.0}, "other": {"weight": 3.0, "schedule": DEFAULTS | {"warmup": 4, "unit": "steps"}}}
    assert Schedule(Train(steps=9), 3, losses).weights(2) == {"one": 2.0, "other": 1.5}


def test_a_config_holds_the_whole_schedule_and_comes_back_equal(make_config: Any, tmp_path: Path) -> None:
    path = make_config("run", "", "  cross_entropy: {schedule: {warmup: 2, decay: cosine}}")
    config = configs.load(path)
    schedule = {"warmup": 2.0, "decay": "cosine", "from": 2.0, "unit": "epochs"}
    assert config.losses["cross_entropy"]["schedule"] == schedule
    (tmp_path / "written.yaml").write_text(config.to_yaml())
    assert configs.load(tmp_path / "written.yaml") == config
    assert "schedule" not in configs.load(make_config()).losses["cross_entropy"]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{warmup: -1}", "schedule.warmup: must be at least 0, got -1"),
        ("{warm_up: 3}", "schedule.warm_up: unknown key; did you mean warmup?"),
        ("{decay: linear}", "schedule.decay: must be 'none' or 'cosine', got \"linear\""),
        ("{unit: weeks}", "schedule.unit: must be 'epochs' or 'steps'"),
        (
            "{from: 3}",
            "schedule: `from` sets the start of a decay, but there is no `decay`; add `decay: cosine`, or remove "
            "`from`",
        ),
        ("{warmup: 9, decay: cosine, from: 3}", "schedule: from: must be at least the warmup, 9"),
        ("cosine", "schedule: must be a mapping"),
    ],
)
def test_faults_are_named_with_their_place(make_config: Any, written: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        configs.load(make_config("run", "", f"  cross_entropy: {{schedule: {written}}}"))
    assert f"losses.cross_entropy.{message}" in str(caught.value)
    assert ".yaml line " in str(caught.value)


def test_it_is_explained() -> None:
    assert explain_key("losses.kd.schedule.from").startswith("losses.NAME.schedule.from: number ≥ 0; 0.0")
    assert "a cosine that reaches 0" in explain_key("losses.kd.schedule")


def test_training_follows_the_schedule_and_resumes_to_the_same_bits(make_config: Any) -> None:
    """The first half of the steps has no weight to speak of, the rest none at all: what is trained then stays."""
    losses = "  cross_entropy: {schedule: {warmup: 4, decay: cosine, from: 5, unit: steps}}"
    settings = ["train.steps=10", "train.log_every=1", "train.checkpoint_every=5", "train.keep_checkpoints=9"]
    whole = train(configs.load(make_config("whole", "", losses), settings))
    log = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    ratio = [row["loss"] / row["loss/cross_entropy"] for row in log]
    assert ratio == pytest.approx([0.25, 0.5, 0.75, 1, 1] + [(1 + math.cos(math.pi * i / 5)) / 2 for i in range(1, 6)])
    assert [row["weight/cross_entropy"] for row in log] == pytest.approx(ratio)

    cut = Path(str(whole).replace("whole", "cut"))
    shutil.copytree(whole, cut)
    shutil.rmtree(list_checkpoints(cut / "checkpoints")[-1])
    shutil.rmtree(cut / "student")
    train(configs.load(make_config("cut", "", losses), settings), resume=True)
    one, two = (load_file(run / "student" / "model.safetensors") for run in (whole, cut))
    assert all(torch.equal(one[key], two[key]) for key in one)
