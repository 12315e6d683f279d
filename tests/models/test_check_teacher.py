"""Teachers that have nothing to teach are refused, and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from losses import Features
from modalities.encoders import Encoder, Preprocessing
from pipeline.common.errors import UserError
from pipeline.config import load
from pipeline.models.check_teacher import check_features, check_weights, warn_of_random_student
from pipeline.train import train
from pipeline.train.cache_teacher import cache

PARTS = {"teacher 1 (rgb)": 5, "teacher 2 (depth)": 4}


class Own(Encoder):
    """A user's encoder, whose weights nobody knows."""

    def __init__(self, channels: int, *, size: int = 16, output: str = "constant") -> None:
        super().__init__(Preprocessing.of(channels, size))
        self.dim, self.output = 6, output

    def forward(self, x: Tensor) -> Features:
        mean = self.normalise(x).mean((1, 2, 3))[:, None]
        line = mean * torch.arange(1, 7, device=mean.device)
        return Features({"constant": 1 + 0 * line, "line": line, "nan": line / 0 - line / 0}[self.output])


def teacher(encoder: str, modality: str = "rgb", more: str = "") -> str:
    return f"teacher: {{modality: {modality}, encoder: {encoder}{more}}}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (teacher("resnet18"), r"teacher.encoder: resnet18 has random weights.*\{name: resnet18, weights: random"),
        (teacher("{name: cnn5, width: 4}"), "teacher.encoder: cnn5 has random weights"),
        (teacher("'modalities.encoders.cnn5:CNN5'"), "CNN5 has random weights"),
        (teacher("log_mel_cnn", "audio"), "log_mel_cnn has random weights"),
        (teacher("{name: module, factory: 'a.b:c'}"), "module has random weights.*`factory` if the factory loads them"),
        (
            teacher("[{name: cnn5, weights: random}, resnet8]", "[rgb, depth]"),
            r"teacher.encoder\[1\]: resnet8 has random weights",
        ),
        (teacher("{name: transformers, model: a/b, lora: {rank: 4}}"), r"teacher.encoder.lora: .* for the student"),
    ],
)
def test_random_weights_are_refused_before_data_is_opened(
    make_config: Callable[..., Path], text: str, message: str
) -> None:
    config = load(make_config(teacher=text, losses="  cosine: {}", shards=Path("nowhere")))
    for command in (train, check_weights):
        with pytest.raises(UserError, match=message):
            command(config)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "teacher: {run: runs/teacher}",
        teacher("{name: cnn5, weights: random}"),
        teacher("{name: transformers, model: a/b}"),
        teacher("{name: module, factory: 'a.b:c', weights: factory}"),
        teacher(f"'{__name__}:Own'"),
    ],
)
def test_other_teachers_are_not(make_config: Callable[..., Path], text: str) -> None:
    check_weights(load(make_config(teacher=text)))


@pytest.mark.parametrize(
    ("encoder", "warned"),
    [
        ("{name: cnn5, width: 4, freeze: true}", True),
        ("{name: module, factory: 'a.b:c', freeze: true}", True),
        ("{name: cnn5, width: 4}", False),
        ("{name: cnn5, width: 4, freeze: false}", False),
        ("{name: cnn5, width: 4, freeze: [layers]}", False),
        ("{name: cnn5, width: 4, weights: random, freeze: true}", False),
        ("{name: module, factory: 'a.b:c', weights: factory, freeze: true}", False),
        ("{name: transformers, model: a/b, freeze: true}", False),
    ],
)
def test_a_frozen_student_with_random_weights_is_warned_of(
    make_config: Callable[..., Path], caplog: pytest.LogCaptureFixture, encoder: str, warned: bool
) -> None:
    warn_of_random_student(load(make_config(), [f"student.encoder={encoder}"]))
    assert ["student.encoder: " in m and "stay random" in m for m in caplog.messages] == [True] * warned


def test_features_that_vary_are_accepted() -> None:
    torch.manual_seed(0)
    for samples in (1, 2, 7, 8, 300):
        check_features(Features(torch.randn(samples, 9)), PARTS)
    few = Features(torch.ones(7, 9), logits=torch.zeros(7, 1))
    check_features(few, PARTS)  # they may be seven copies of one sample
    one_class = Features(torch.randn(64, 9), logits=torch.zeros(64, 3))
    check_features(one_class, PARTS)
    offset = Features(1000 + torch.randn(64, 9))
    check_features(offset, PARTS)
    clusters = torch.randn(2, 9)[torch.arange(64) % 2] + 0.05 * torch.randn(64, 9)
    check_features(Features(clusters), PARTS)
    check_features(Features(torch.randn(64, 1)), {"teacher (rgb)": 1})
    check_features(Features(torch.randn(64, 9).bfloat16().float()), PARTS)


def test_unpaired_samples_are_not_looked_at() -> None:
    pooled = torch.randn(20, 9)
    pooled[3] = torch.nan
    rows = torch.arange(20) != 3
    check_features(Features(pooled), PARTS, rows)
    check_features(Features(pooled), PARTS, torch.zeros(20, dtype=torch.bool))


def test_each_network_of_a_teacher_is_looked_at() -> None:
    good, line = torch.randn(16, 5), torch.randn(16, 1) @ torch.randn(1, 4)
    for second, message in (
        (torch.full((16, 4), 0.3), r"teacher 2 \(depth\) are constant \(relative standard deviation"),
        (line, r"teacher 2 \(depth\) are one-dimensional \(rank 1"),
        (torch.full((16, 4), torch.inf), r"teacher 2 \(depth\) are not finite \(NaN or infinite\) in 16 of 16"),
    ):
        with pytest.raises(UserError, match=message):
            check_features(Features(torch.cat([good, second], 1)), PARTS)
    bad = torch.ones(16, 3)
    bad[:4, 0] = torch.nan
    with pytest.raises(UserError, match=r"logits of the teacher are not finite .* in 4 of 16 samples \(25.0 %\)"):
        check_features(Features(torch.cat([good, good[:, :4]], 1), logits=bad), PARTS)
    with pytest.raises(UserError, match="feature map 0"):
        check_features(Features(torch.cat([good, good[:, :4]], 1), [bad[:, :, None, None]]), PARTS)


@pytest.mark.parametrize(("output", "message"), [("constant", "constant"), ("line", "one-dim"), ("nan", "not finite")])
def test_training_and_caching_refuse_them(make_config: Any, output: str, message: str, monkeypatch: Any) -> None:
    encoder = f"{{name: '{__name__}:Own', output: {output}}}"
    config = load(make_config(teacher=teacher(encoder), losses="  cosine: {}"))
    with pytest.raises(UserError, match=rf"the features of the teacher \(rgb\) are {message}"):
        train(config)
    assert not list(Path(config.run).glob("checkpoints/*"))
    shards = load(make_config("cached", teacher(encoder, more=", cache: bad"), "  cosine: {}"))
    with pytest.raises(UserError, match=rf"train-.*tar: samples .* are {message}.*Nothing of this shard was cached"):
        cache(shards)
    assert not list(Path(shards.data.address).glob("*bad*"))
