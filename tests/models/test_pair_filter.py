"""Mismatched pairs of linear features are found; nothing is left out where the student predicts nothing."""

from __future__ import annotations

import pytest
import torch

from losses import Features
from losses.base import Batch
from pipeline.models.match_probe import FOLDS
from pipeline.models.pair_filter import FIRST, REDUCED, PairFilter

SAMPLES, BATCH, D_S, D_T = 600, 50, 12, 20


class World:
    """Fixed samples: the teacher's features are a noisy linear map of the student's, except for mismatched pairs."""

    def __init__(self, mismatched: float, noise: float = 0.5, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.s = torch.randn(SAMPLES, D_S, generator=self.generator)
        clean = self.s @ torch.randn(D_S, D_T, generator=self.generator)
        clean = clean + noise * clean.std() * torch.randn(SAMPLES, D_T, generator=self.generator)
        count = round(mismatched * SAMPLES)
        self.wrong = torch.arange(SAMPLES) < count
        self.t = torch.cat([clean[:count].roll(1, 0), clean[count:]])

    def batches(self, epochs: int) -> list[tuple[Features, Features, Batch]]:
        orders = [torch.randperm(SAMPLES, generator=self.generator) for _ in range(epochs)]
        chunks = [index for order in orders for index in order.split(BATCH)]
        return [(Features(3 * self.s[i] - 1), Features(5 * self.t[i] + 2), {"index": i}) for i in chunks]


def run(world: World, epochs: int = 6) -> PairFilter:
    found = PairFilter(D_S, D_T, SAMPLES)
    for student, teacher, batch in world.batches(epochs):
        found(student, teacher, batch)
    return found


@pytest.mark.parametrize(("mismatched", "least", "most"), [(0.2, 0.9, 0.05), (0.4, 0.9, 0.05), (0.8, 0.7, 0.2)])
def test_it_finds_mismatched_pairs(mismatched: float, least: float, most: float) -> None:
    """With 80 % mismatched pairs, a probe learns from 60 correct ones among 300."""
    world = World(mismatched)
    left_out = ~run(world).used()
    assert left_out[world.wrong].float().mean() > least
    assert left_out[~world.wrong].float().mean() < most


def test_what_the_student_cannot_predict_does_not_matter() -> None:
    """All features of the teacher vary together by as much as what the student predicts."""
    world = World(0.4)
    common = torch.randn(SAMPLES, 3, generator=world.generator) @ torch.randn(3, D_T, generator=world.generator)
    world.t = world.t + world.t.std() * common
    left_out = ~run(world).used()
    assert left_out[world.wrong].float().mean() > 0.85
    assert left_out[~world.wrong].float().mean() < 0.1


def test_large_features_are_projected() -> None:
    """The state of the probe is bounded, and pairs are still found."""
    world = World(0.4)
    generator = torch.Generator().manual_seed(1)
    wide = (torch.randn(D_S, 700, generator=generator), torch.randn(D_T, 900, generator=generator))
    world.s, world.t = world.s @ wide[0], world.t @ wide[1]
    found = PairFilter(700, 900, SAMPLES)
    assert found.probe.moments.numel() <= FOLDS * (2 * REDUCED + 1) ** 2
    for student, teacher, batch in world.batches(6):
        found(student, teacher, batch)
    left_out = ~found.used()
    assert left_out[world.wrong].float().mean() > 0.85
    assert left_out[~world.wrong].float().mean() < 0.1


def test_correct_pairs_are_all_used() -> None:
    assert run(World(0.0)).used().float().mean() > 0.98


def test_nothing_is_left_out_if_the_student_predicts_nothing() -> None:
    found = run(World(0.0, noise=1e6))
    assert (found.probability() == 1).all()
    assert found.metrics()["mismatched"] == 0


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("value", [0.0, 0.3, 1e4])
def test_constant_features_leave_nothing_out(side: str, value: float) -> None:
    world = World(0.4)
    features = world.s if side == "student" else world.t
    features.fill_(value)
    found = run(world)
    assert found.used().all()
    assert not found.separates()


def test_no_sample_is_scored_before_the_probe_is_fitted() -> None:
    """The set of other samples takes several steps to fill."""
    found = PairFilter(D_S, D_T, SAMPLES)
    for student, teacher, batch in World(0.0).batches(1):
        found(student, teacher, batch)
        scored = found.scores[0][found.looks > 0]
        assert (scored != 0).all()
    assert len(scored) > 0


def test_nothing_is_left_out_before_the_first_step() -> None:
    world = World(0.4)
    found = PairFilter(D_S, D_T, SAMPLES)
    for step, (student, teacher, batch) in enumerate(world.batches(5)):
        matches = found(student, teacher, batch)
        assert matches.all() or step >= FIRST
    assert not matches.all()


def test_scale_and_shift_of_the_features_do_not_matter() -> None:
    world = World(0.4)
    one, other = (PairFilter(D_S, D_T, SAMPLES) for _ in range(2))
    for student, teacher, batch in world.batches(4):
        one(student, teacher, batch)
        other(Features(100 * student.pooled + 7), Features(0.01 * teacher.pooled - 3), batch)
    assert (one.used() == other.used()).float().mean() > 0.99


def test_validation_and_features_that_are_not_finite_change_nothing() -> None:
    world = World(0.4)
    found = run(world)
    before = {name: value.clone() for name, value in found.state_dict().items()}
    student, teacher, batch = world.batches(1)[0]
    found(Features(student.pooled * torch.nan), teacher, batch)
    found.eval()(student, teacher, batch)
    assert all(torch.equal(value, before[name]) for name, value in found.state_dict().items())


def test_unpaired_samples_are_not_judged() -> None:
    found = PairFilter(D_S, D_T, SAMPLES)
    world = World(0.0)
    for student, teacher, batch in world.batches(3):
        found(student, teacher, batch, batch["index"] % 3 > 0)
    assert (found.looks[::3] == 0).all()
    assert (found.looks[1::3] >= 2).all()  # the first batch is not judged


def test_it_continues_from_its_state() -> None:
    batches = World(0.4).batches(6)
    whole = PairFilter(D_S, D_T, SAMPLES)
    first, second = (PairFilter(D_S, D_T, SAMPLES) for _ in range(2))
    for inputs in batches:
        whole(*inputs)
    for inputs in batches[:31]:
        first(*inputs)
    second.load_state_dict(first.state_dict())
    for inputs in batches[31:]:
        second(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(whole.buffers(), second.buffers(), strict=True))
