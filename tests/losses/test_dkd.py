"""DKD against its definition written out, and against the KD that it takes apart."""

import math

import pytest
import torch
from cases import assert_agree, logits

from losses import KD, Dims, Features
from losses.dkd import DKD

DIMS = Dims(0, classes=7)
Double = torch.float64


def dkd(student: torch.Tensor, teacher: torch.Tensor, label: torch.Tensor, **keywords: float) -> torch.Tensor:
    dims = Dims(0, classes=student.shape[1])
    empty = torch.empty(len(student), 0)
    batch = {"label": label}
    return DKD(dims, dims, **keywords)(Features(empty, logits=student), Features(empty, logits=teacher), batch)


@pytest.mark.parametrize(("n", "classes"), [(5, 7), (3, 2), (16, 100)])
def test_value_and_gradient_are_those_of_the_definition(n: int, classes: int) -> None:
    student, teacher = logits(n, classes)
    label = torch.arange(n) * 3 % classes
    z = student.clone().requires_grad_()
    total = torch.zeros((), dtype=Double)
    for i in range(n):
        p_s, p_t = (torch.exp(x[i] / 4) / torch.exp(x[i] / 4).sum() for x in (z, teacher))
        y, others = int(label[i]), [k for k in range(classes) if k != label[i]]
        b_s, b_t = (torch.stack([p[y], p[others].sum()]) for p in (p_s, p_t))
        q_s, q_t = (p[others] / p[others].sum() for p in (p_s, p_t))
        target, rest = ((t * torch.log(t / s)).sum() for s, t in ((b_s, b_t), (q_s, q_t)))
        total = total + 16 * (target + 8 * rest)
    assert_agree(dkd(z, teacher, label), total / n, [z])


def test_is_the_definition_written_out() -> None:
    student, teacher = logits(5)
    label = torch.tensor([0, 6, 3, 3, 1])
    expected = 0.0
    for i in range(5):
        p_s, p_t = ([math.exp(x / 2) for x in row[i].tolist()] for row in (student, teacher))
        p_s, p_t = ([x / sum(p) for x in p] for p in (p_s, p_t))
        y = int(label[i])
        target = p_t[y] * math.log(p_t[y] / p_s[y]) + (1 - p_t[y]) * math.log((1 - p_t[y]) / (1 - p_s[y]))
        q_s, q_t = ([p[k] / (1 - p[y]) for k in range(7) if k != y] for p in (p_s, p_t))
        others = sum(b * math.log(b / a) for a, b in zip(q_s, q_t, strict=True))
        expected += 4 * (0.5 * target + 3 * others) / 5
    assert dkd(student, teacher, label, alpha=0.5, beta=3, temperature=2).item() == pytest.approx(expected, rel=1e-12)


def test_defaults_are_the_published_ones() -> None:
    student, teacher = logits(4)
    label = torch.tensor([0, 1, 2, 3])
    expected = dkd(student, teacher, label, alpha=1, beta=8, temperature=4)
    assert dkd(student, teacher, label) == expected


@pytest.mark.parametrize("label", range(7))
def test_is_kd_where_beta_is_the_teachers_probability_of_the_rest(label: int) -> None:
    """The decomposition that the paper starts from."""
    student, teacher = logits(1)
    rest = 1 - torch.softmax(teacher / 4, 1)[0, label].item()
    kd = KD(DIMS, DIMS)(Features(student, logits=student), Features(teacher, logits=teacher), {})
    torch.testing.assert_close(dkd(student, teacher, torch.tensor([label]), beta=rest), kd)


def test_a_sample_without_label_takes_the_teachers_argmax() -> None:
    student, teacher = logits(6)
    label = torch.arange(6)
    some = torch.tensor([True, False, True, True, False, False])
    filled = torch.where(some, label, teacher.argmax(1))
    assert (filled != label).any()
    found = dkd(student, teacher, label.masked_fill(~some, -1))
    assert found == dkd(student, teacher, filled)
    assert found != dkd(student, teacher, label)


@pytest.mark.parametrize("classes", [2, 7])
def test_gradient_in_float64(classes: int) -> None:
    student, teacher = logits(4, classes)
    label = torch.tensor([0, 1, -1, 1])
    assert torch.autograd.gradcheck(lambda x: dkd(x, teacher, label), student.requires_grad_())


def test_ignores_a_constant_added_to_the_logits() -> None:
    student, teacher = logits(5)
    label = torch.arange(5)
    torch.testing.assert_close(dkd(student + 3, teacher - 2, label), dkd(student, teacher, label))


def test_stays_finite_where_probabilities_vanish() -> None:
    student, teacher = (x * 1000 for x in logits(5, dtype=torch.float32))
    loss = dkd(student.requires_grad_(), teacher, torch.arange(5))
    loss.backward()
    assert student.grad is not None
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_refuses_other_classes() -> None:
    for student, teacher in [(10, 12), (10, None), (None, None), (1, 1)]:
        with pytest.raises(ValueError, match="same classes"):
            DKD(Dims(8, classes=student), Dims(8, classes=teacher))
