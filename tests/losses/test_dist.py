"""DIST against numpy's correlations, and the invariance that it is made for."""

import numpy as np
import pytest
import torch
from cases import assert_agree, logits

from losses import Dims, Features
from losses.dist import DIST

DIMS = Dims(0, classes=7)
Double = torch.float64


def dist(student: torch.Tensor, teacher: torch.Tensor, **keywords: float) -> torch.Tensor:
    return DIST(DIMS, DIMS, **keywords)(Features(student, logits=student), Features(teacher, logits=teacher), {})


@pytest.mark.parametrize(("n", "classes"), [(5, 7), (2, 3), (16, 100)])
def test_is_the_published_form_written_out(n: int, classes: int) -> None:
    student, teacher = logits(n, classes)
    dims = Dims(0, classes=classes)
    z = student.clone().requires_grad_()
    s, t = (torch.exp(x / 4) / torch.exp(x / 4).sum(1, keepdim=True) for x in (z, teacher))
    inter = intra = torch.zeros((), dtype=Double)
    for i in range(n):
        inter = inter + 1 - pearson(s[i], t[i])
    for k in range(classes):
        intra = intra + 1 - pearson(s[:, k], t[:, k])
    found = DIST(dims, dims)(Features(z, logits=z), Features(teacher, logits=teacher), {})
    assert_agree(found, 16 * (2 * inter / n + 2 * intra / classes), [z])


def pearson(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """With the published 1e-8 in its denominator."""
    a, b = a - a.sum() / len(a), b - b.sum() / len(b)
    return (a * b).sum() / (torch.sqrt((a**2).sum()) * torch.sqrt((b**2).sum()) + 1e-8)


def test_is_the_definition_written_out() -> None:
    student, teacher = logits(5)
    s, t = (torch.softmax(x / 3, 1).numpy() for x in (student, teacher))
    inter = np.mean([1 - np.corrcoef(s[i], t[i])[0, 1] for i in range(5)])
    intra = np.mean([1 - np.corrcoef(s[:, k], t[:, k])[0, 1] for k in range(7)])
    found = dist(student, teacher, beta=0.5, gamma=3, temperature=3)
    assert found.item() == pytest.approx(9 * (0.5 * inter + 3 * intra), rel=1e-6)


def test_defaults_are_the_published_ones() -> None:
    assert dist(*logits(5)) == dist(*logits(5), beta=2, gamma=2, temperature=4)


def test_relations_and_not_probabilities_are_matched() -> None:
    """A sharper or a softer student of the same relations is as good: probabilities mixed with uniform ones."""
    _, teacher = logits(5)
    softened = 4 * (0.6 * torch.softmax(teacher / 4, 1) + 0.4 / 7).log()
    assert dist(softened, teacher).abs() < 1e-4  # up to the epsilon in the denominator
    assert dist(-teacher, teacher) > 10


@pytest.mark.parametrize("n", [1, 2, 5])
def test_gradient_in_float64(n: int) -> None:
    student, teacher = logits(n)
    assert torch.autograd.gradcheck(lambda x: dist(x, teacher), student.requires_grad_())


def test_one_sample_has_no_relation_within_a_class() -> None:
    student, teacher = logits(1)
    torch.testing.assert_close(dist(student, teacher), dist(student, teacher, gamma=0) + 32)


def test_constant_predictions_are_finite() -> None:
    student = torch.zeros(5, 7, requires_grad=True)
    loss = dist(student, logits(5, dtype=torch.float32)[1])
    loss.backward()
    assert loss.item() == pytest.approx(64)
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("spread", [0.0, 1e-9, 1e-6, 1e-4, 1e-2])
def test_the_gradient_is_bounded_however_constant_the_student_is(spread: float) -> None:
    """That of the published form reaches 8e6 here."""
    student, teacher = logits(5)
    z = (spread * student).requires_grad_()
    dist(z, teacher).backward()
    assert z.grad is not None
    assert 0 < z.grad.abs().max() < 1e3


def test_refuses_other_classes() -> None:
    for student, teacher in [(10, 12), (10, None), (1, 1)]:
        with pytest.raises(ValueError, match="same classes"):
            DIST(Dims(8, classes=student), Dims(8, classes=teacher))
