"""The protocol of the published CIFAR-100 tables: what a config of it makes of rate, decay, augmentation and result."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch.nn import functional as F

from losses import KD, Dims, Features
from pipeline import config as configs
from pipeline.common.hashing import digest
from pipeline.config.settings import Train
from pipeline.data.augmentation import Augmentation
from pipeline.evaluate import evaluate
from pipeline.models.build import build_model
from pipeline.train import train
from pipeline.train.optimizer import build_optimizer
from pipeline.train.schedule import Schedule

KEYS = [digest(f"s{number}") for number in range(20_000)]


def schedule(steps_per_epoch: int = 781, **settings: Any) -> Schedule:
    return Schedule(Train(**settings), steps_per_epoch)


def published(rate: float = 0.05) -> Schedule:
    return schedule(epochs=240, learning_rate=rate, schedule="step", milestones=[150, 180, 210], warmup=0)


@pytest.mark.parametrize(
    ("epoch", "factor"),
    [(1, 1), (150, 1), (151, 0.1), (180, 0.1), (181, 0.01), (210, 0.01), (211, 0.001), (240, 0.001)],
)
def test_the_rate_falls_after_epochs_150_180_and_210(epoch: int, factor: float) -> None:
    """Of the 1-based epoch, in its first and in its last step."""
    for rate in (0.05, 0.01):
        for step in (781 * (epoch - 1) + 1, 781 * epoch):
            assert published(rate).learning_rate(step) == pytest.approx(rate * factor)


def test_epochs_become_steps() -> None:
    assert published().steps == 240 * 781  # of 64 of 50,000
    assert schedule(steps=500).steps == 500


def test_the_rate_of_a_cosine_warms_up_and_ends_at_zero() -> None:
    for length in ({"steps": 100}, {"epochs": 4}):
        plan = schedule(25, **length, warmup=10, learning_rate=0.5)
        rates = [plan.learning_rate(step) for step in range(1, 101)]
        assert rates[9] == max(rates) == 0.5
        assert rates[:10] == sorted(rates[:10])
        assert rates[9:] == sorted(rates[9:], reverse=True)
        assert rates[-1] == pytest.approx(0)


def test_steps_of_the_rate_can_follow_a_warmup() -> None:
    plan = schedule(10, steps=40, schedule="step", milestones=[2], warmup=4, learning_rate=1.0)
    rates = [plan.learning_rate(step) for step in range(1, 41)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, *[1.0] * 17, *[0.1] * 20])


DECAYED = """\
  cross_entropy: {}
  crd: {dim: 8}
  wcord: {dim: 8}
  info_nce: {dim: 8}
  siglip: {dim: 8}
  local_global: {dim: 8}
"""
NEVER_DECAYED = {
    "wcord.global_contrast.log_temperature",
    "info_nce.log_temperature",
    "siglip.log_temperature",
    "siglip.bias",
    "local_global.log_temperature",
}
"""Temperatures, scales and biases of contrasts, which are learnt within bounds of their own."""


@pytest.mark.parametrize("everything", [True, False])
def test_what_is_decayed(make_config: Any, everything: bool) -> None:
    """One step of SGD without a gradient is the decay alone: published, of all that is trained, the losses' too."""
    protocol = ["train.optimizer=sgd", "train.weight_decay=5e-4", f"train.decay_vectors={everything}".lower()]
    teacher = "teacher: {modality: rgb, encoder: {name: cnn5, width: 4, size: 16, weights: random}}"
    config = configs.load(make_config(teacher=teacher, losses=DECAYED), protocol)
    model = build_model(config)
    optimizer = build_optimizer(model, config)
    assert all(group["momentum"] == 0.9 and not group["nesterov"] for group in optimizer.param_groups)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith("teacher.") for name in named)
    before = {name: p.detach().fill_(0.5).clone() for name, p in named.items()}
    for p in named.values():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in named.items():
        decayed = p.ndim > 1 or (everything and name.removeprefix("losses.") not in NEVER_DECAYED)
        expected = before[name] * (1 - 3.0e-3 * 5e-4) if decayed else before[name]
        torch.testing.assert_close(p.detach(), expected, rtol=1e-7, atol=0)
    assert any(p.ndim <= 1 for p in named.values())
    assert any(name.startswith("losses.crd") for name in named)
    assert {f"losses.{name}" for name in NEVER_DECAYED} <= named.keys()


def test_the_shift_is_uniform_over_whole_pixels_and_half_is_mirrored() -> None:
    moves, flips = Augmentation(0, flip=True, pad=(4, 32)).moves(0, KEYS)
    both = Counter(map(tuple, moves.tolist()))
    assert len(both) == 81
    assert chisquare(list(both.values())).pvalue > 1e-3
    assert abs(flips.float().mean() - 0.5) < 0.02
    x, y, mirrored = moves[:, 0].float(), moves[:, 1].float(), flips.float()
    correlation = torch.corrcoef(torch.stack([x, y, mirrored])) - torch.eye(3)
    assert correlation.abs().max() < 0.03
    assert not Augmentation(0, pad=(4, 32)).moves(0, KEYS)[1].any()


def test_shifts_differ_by_seed_epoch_and_key_alone() -> None:
    draw = Augmentation(0, flip=True, pad=(4, 32))
    again = [draw.geometry(3, key) for key in KEYS[:50]]
    assert again == [draw.geometry(3, key) for key in KEYS[:50]]
    moves, flips = draw.moves(3, KEYS[:50])
    assert [(round(32 * g.left), round(32 * g.top), g.flip) for g in again] == [
        (x, y, flip) for (x, y), flip in zip(moves.tolist(), flips.tolist(), strict=True)
    ]
    for other in (draw.moves(4, KEYS)[0], Augmentation(1, flip=True, pad=(4, 32)).moves(3, KEYS)[0]):
        same = (other == draw.moves(3, KEYS)[0]).all(1).float().mean()
        assert abs(same - 1 / 81) < 0.005


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (0, [(-1, 3, True), (-4, -1, True), (2, -1, True), (4, 0, True)]),
        (7, [(-2, -4, True), (1, 1, True), (3, 1, False), (-1, 0, False)]),
        (2**40 + 1, [(3, -3, False), (-3, 3, True), (-3, 0, False), (-2, -1, False)]),
    ],
)
def test_shifts_are_those_of_the_first_version(seed: int, expected: list[tuple[int, int, bool]]) -> None:
    """Else a resumed run would see other pixels, and stored views of a teacher would belong to other crops."""
    draw = Augmentation(seed, flip=True, pad=(4, 32))
    places = [(0, 0), (3, 12_345_678_901_234_567_890), (2**33, 2**64 - 1), (1, 5)]  # of the size of 64 bits, too
    for (epoch, key), shift in zip(places, expected, strict=True):
        geometry = draw.geometry(epoch, key)
        assert (32 * geometry.left, 32 * geometry.top, geometry.flip) == shift
        moves, flips = draw.moves(epoch, [key])
        assert (*moves[0].tolist(), flips.item()) == shift


def test_a_shift_is_the_crop_of_a_zero_padded_image() -> None:
    image = np.random.default_rng(0).integers(1, 255, (32, 32, 3), dtype=np.uint8)
    padded = np.pad(image, [(4, 4), (4, 4), (0, 0)])
    draw = Augmentation(0, flip=True, pad=(4, 32))
    for key in KEYS[:40]:
        (x, y), mirrored = (part[0].tolist() for part in draw.moves(0, [key]))
        expected = padded[4 + y : 36 + y, 4 + x : 36 + x]
        found = draw.geometry(0, key).resize(image, 32)
        assert np.array_equal(found, expected[:, ::-1] if mirrored else expected)


def test_without_a_shift_flips_are_those_of_the_crops() -> None:
    draw = Augmentation(1, flip=True)
    moves, flips = draw.moves(2, KEYS[:50])
    assert not moves.any()
    assert flips.tolist() == [draw.geometry(2, key).flip for key in KEYS[:50]]
    assert 10 < flips.sum() < 40


def test_the_kd_term_is_the_published_one() -> None:
    """`T^2` times the divergence, summed over classes and averaged over the batch; cross-entropy 0.1, KD 0.9."""
    s, t = torch.randn(8, 100), torch.randn(8, 100)
    dims = Dims(4, classes=100)
    p_s, p_t = F.softmax(s.double() / 4, 1), F.softmax(t.double() / 4, 1)
    expected = (p_t * (p_t.log() - p_s.log())).sum(1).mean() * 16
    features = Features(torch.zeros(8, 4), logits=s), Features(torch.zeros(8, 4), logits=t)
    torch.testing.assert_close(KD(dims, dims)(*features, {}).double(), expected, rtol=1e-4, atol=1e-6)


def test_the_result_is_of_the_last_epoch(make_config: Any) -> None:
    """Not of the best one, which is kept apart."""
    settings = ["train.steps=null", "train.epochs=5", "evaluation.every=6", "train.learning_rate=0.02"]
    run = train(configs.load(make_config(), [*settings, "student.modality.dropout=0", "train.log_every=6"]))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in lines) == 30
    assert max(line.get("epoch", 0) for line in lines) == 5
    checked = {line["step"]: line["held_out/top1"] for line in lines if "held_out/top1" in line}
    assert sorted(checked) == [6, 12, 18, 24, 30]
    assert evaluate(run)["student/top1"] == pytest.approx(checked[30], abs=1e-9)


def test_a_run_of_epochs_shifts_and_goes_on_where_it_stopped(make_config: Any, tmp_path: Path) -> None:
    settings = [
        "train.steps=null",
        "train.epochs=3",
        "train.schedule=step",
        "train.milestones=[1,2]",
        "data.pad=[2,16]",
    ]
    settings += ["data.crop=[1,1]", "train.log_every=1", "train.clip=null"]
    run = train(configs.load(make_config(), settings))
    whole = (run / "student" / "model.safetensors").read_bytes()
    rates = [json.loads(line)["lr"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([0.0015, *[0.003] * 5, *[0.0003] * 6, *[0.00003] * 6])
    for late in ("step_00000015", "step_00000018"):
        (run / "checkpoints" / late).rename(tmp_path / late)
    assert not list((run / "checkpoints").glob("step_*"))
    (tmp_path / "step_00000015").rename(run / "checkpoints" / "step_00000015")
    assert train(configs.load(make_config(), settings), resume=True) == run
    assert (run / "student" / "model.safetensors").read_bytes() == whole
