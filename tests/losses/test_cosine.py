"""Cosine against its definition written out, and what standardising does."""

import math

import pytest
import torch

from losses import Dims, Features
from losses.cosine import Cosine

Double = torch.float64


def pooled(n: int) -> tuple[Features, Features]:
    rng = torch.Generator().manual_seed(n)
    x = torch.randn(n, 13, generator=rng, dtype=Double)
    return Features(x[:, :5]), Features(x[:, 5:])


def written_out(loss: Cosine, student: torch.Tensor, teacher: torch.Tensor) -> float:
    total = 0.0
    for s, t in zip(loss.projection(student).tolist(), teacher.tolist(), strict=True):
        lengths = math.sqrt(sum(a * a for a in s) * sum(b * b for b in t))
        total += 1 - sum(a * b for a, b in zip(s, t, strict=True)) / lengths
    return total / len(student)


def test_is_the_definition_written_out() -> None:
    student, teacher = pooled(6)
    raw = Cosine(Dims(5), Dims(8), standardise=False).double()
    expected = written_out(raw, student.pooled, teacher.pooled)
    assert raw(student, teacher, {}).item() == pytest.approx(expected, rel=1e-12)

    standardised = Cosine(Dims(5), Dims(8)).double()
    t = (teacher.pooled - teacher.pooled.mean(0)) / teacher.pooled.std(0, unbiased=False)
    expected = written_out(standardised, student.pooled, t)
    assert standardised(student, teacher, {}).item() == pytest.approx(expected, rel=1e-12)


def test_statistics_grow_in_training_only_and_travel_in_the_state() -> None:
    loss = Cosine(Dims(5), Dims(8)).double()
    loss(*pooled(6), {})
    loss.eval()
    resumed = Cosine(Dims(5), Dims(8)).double().eval()
    resumed.load_state_dict(loss.state_dict())
    first = loss(*pooled(7), {})
    assert loss(*pooled(7), {}) == first
    assert resumed(*pooled(7), {}) == first
    loss.train()
    assert loss(*pooled(7), {}) != first


def test_mean_and_scale_of_the_teachers_dimensions_are_free() -> None:
    student, teacher = pooled(6)
    loss, other = (Cosine(Dims(5), Dims(8)).double() for _ in range(2))
    other.load_state_dict(loss.state_dict())
    moved = Features(teacher.pooled * torch.linspace(0.1, 50, 8, dtype=Double) + 100)
    torch.testing.assert_close(other(student, moved, {}), loss(student, teacher, {}), rtol=1e-6, atol=1e-9)


def test_gradient_in_float64() -> None:
    loss = Cosine(Dims(5), Dims(8)).double()
    student, teacher = pooled(5)
    loss(student, teacher, {})
    loss.eval()
    assert torch.autograd.gradcheck(
        lambda x: loss(Features(x), teacher, {}),
        student.pooled.requires_grad_(),
    )


@pytest.mark.parametrize("standardise", [True, False])
def test_one_sample_is_finite(standardise: bool) -> None:
    loss = Cosine(Dims(5), Dims(8), standardise=standardise).double()
    value = loss(*pooled(1), {})
    value.backward()
    assert value.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())
