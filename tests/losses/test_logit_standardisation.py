"""LogitStandardisedKD against its definition written out, and what it leaves to the student."""

import math
import statistics

import pytest
import torch
from cases import logits

from losses import Dims, Features
from losses.logit_standardisation import LogitStandardisedKD

DIMS = Dims(0, classes=7)
Double = torch.float64


def loss_of(student: torch.Tensor, teacher: torch.Tensor, **keywords: float) -> torch.Tensor:
    loss = LogitStandardisedKD(DIMS, DIMS, **keywords)
    return loss(Features(student, logits=student), Features(teacher, logits=teacher), {})


def softmax_of_z(x: list[float], temperature: float) -> list[float]:
    mean, deviation = statistics.mean(x), statistics.stdev(x)
    p = [math.exp((v - mean) / deviation / temperature) for v in x]
    return [v / sum(p) for v in p]


@pytest.mark.parametrize("keywords", [{}, {"temperature": 3.0}])
def test_is_the_definition_written_out(keywords: dict[str, float]) -> None:
    student, teacher = logits(5)
    temperature = keywords.get("temperature", 2.0)
    expected = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = softmax_of_z(s, temperature), softmax_of_z(t, temperature)
        expected += temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 5
    assert loss_of(student, teacher, **keywords).item() == pytest.approx(expected, rel=1e-12)


def test_shift_and_scale_of_every_sample_are_free() -> None:
    student, teacher = logits(5)
    scale, shift = torch.rand(2, 5, 1, dtype=Double).unbind()
    torch.testing.assert_close(loss_of(student * (scale + 0.1) + shift, teacher), loss_of(student, teacher))
    torch.testing.assert_close(loss_of(student, teacher * (scale + 0.1) - shift), loss_of(student, teacher))
    assert loss_of(3 * teacher + 1, teacher).abs() < 1e-12
    assert loss_of(-teacher, teacher) > 0.1


def test_gradient_in_float64() -> None:
    student, teacher = logits(4)
    assert torch.autograd.gradcheck(lambda x: loss_of(x, teacher), student.requires_grad_())


def test_a_head_that_starts_at_zero_gets_a_bounded_gradient() -> None:
    student, teacher = torch.zeros(5, 7, requires_grad=True), logits(5, dtype=torch.float32)[1]
    loss = loss_of(student, teacher)
    loss.backward()
    assert loss > 0
    assert student.grad is not None
    assert 0 < student.grad.abs().max() < 1e3


def test_refuses_other_classes() -> None:
    for student, teacher in [(10, 12), (10, None)]:
        with pytest.raises(ValueError, match="same classes"):
            LogitStandardisedKD(Dims(8, classes=student), Dims(8, classes=teacher))
    with pytest.raises(ValueError, match="2 or more"):
        LogitStandardisedKD(Dims(8, classes=1), Dims(8, classes=1))
