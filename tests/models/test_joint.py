"""A network that sees several modalities: trained as a teacher, taken away whole, and read by a student of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.evaluate import evaluate
from pipeline.models.network import Joint, build_network, load_network, save_network
from pipeline.report.page import report
from pipeline.train import train

RGB, DEPTH = {"name": "rgb"}, {"name": "depth"}
CNN = {"name": "cnn5", "width": 4, "size": 16}
BOTH = (
    "student.modality=[rgb, depth]",
    "student.encoder=[{name: cnn5, width: 4, size: 16}, {name: cnn5, width: 4, size: 24}]",
)
LOSSES = "  cross_entropy: {}\n  kd: {}\n  wcord: {dim: 8, queue: 32}"


def joint(classes: list[str] | None) -> Joint:
    torch.manual_seed(0)
    network = build_network([RGB, DEPTH], [CNN, CNN | {"size": 24}], classes, "student")
    assert isinstance(network, Joint)
    return network.eval()


def inputs(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(batch, 3, 16, 16), torch.rand(batch, 2, 24, 24)


@pytest.mark.parametrize("classes", [None, ["a", "b"]])
def test_features_are_side_by_side_and_come_back_from_the_folder(tmp_path: Path, classes: list[str] | None) -> None:
    network, x = joint(classes), inputs()
    out = network(x)
    assert network.dims.pooled == out.pooled.shape[1] == 32
    assert [m.shape[1] for m in out.maps] == list(network.dims.maps)
    assert [m.shape[2:] for m in out.maps] == list(network.map_sizes())
    parts = [part(own).pooled for part, own in zip(network.networks, x, strict=True)]
    torch.testing.assert_close(out.pooled, torch.cat(parts, 1), rtol=0, atol=0)
    save_network(network, tmp_path)
    again = load_network(tmp_path).eval()
    assert again.classes == classes
    assert again.view == network.view
    torch.testing.assert_close(vars(again(x)), vars(out), rtol=0, atol=0)


def test_probabilities_of_several_heads_are_averaged() -> None:
    parts = [build_network(m, CNN, ["a", "b", "c"], "teacher").eval() for m in (RGB, DEPTH)]
    x = torch.rand(4, 3, 16, 16), torch.rand(4, 2, 16, 16)
    expected = torch.stack([p(own).logits.softmax(1) for p, own in zip(parts, x, strict=True)]).mean(0)
    logits = Joint(parts, None)(x).logits  # type: ignore[arg-type]
    torch.testing.assert_close(logits.softmax(1), expected)
    other = build_network(DEPTH, CNN, ["a", "b"], "teacher")
    assert Joint([parts[0], other], None).classes is None  # type: ignore[list-item]


def test_weights_of_another_head_are_refused(tmp_path: Path) -> None:
    save_network(joint(["a", "b"]), tmp_path)
    text = (tmp_path / "network.json").read_text()
    (tmp_path / "network.json").write_text(text.replace('"b"', '"b", "c"'))
    with pytest.raises(UserError, match=r"model.safetensors: does not match network.json"):
        load_network(tmp_path)


@pytest.mark.slow
def test_a_teacher_of_both_sides_and_a_student_of_one(make_config: Any) -> None:
    """Early: one teacher of two modalities. Late: two teachers. The student sees depth alone."""
    early = train(configs.load(make_config("early"), [*BOTH, "train.steps=60", "train.learning_rate=0.02"]))
    assert evaluate(early)["student/top1"] > 0.5
    config = make_config("student", f"teacher: {{run: {early}}}", LOSSES)
    student = train(configs.load(config, ["train.steps=4", "train.micro_batch=8"]))
    results = evaluate(student)
    assert results["teacher/top1"] == evaluate(early)["student/top1"]
    assert report([student]).read_text().count("rgb + depth") > 0

    alone = [train(configs.load(make_config(m), [f"student.modality={m}", "train.steps=4"])) for m in ("rgb", "depth")]
    config = make_config("late_student", f"teacher: {{run: [{alone[0]}, {alone[1]}]}}", LOSSES)
    assert "teacher/top1" in evaluate(train(configs.load(config, ["train.steps=4"])))
    config = make_config("nested", f"teacher: {{run: [{early}, {alone[1]}]}}", LOSSES)
    with pytest.raises(UserError, match="is a joint network, which cannot be part"):
        train(configs.load(config))
