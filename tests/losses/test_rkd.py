"""RKD against published values and its definition written out, and where its geometry degenerates."""

from typing import Any

import numpy as np
import pytest
import torch
from cases import vectors

from losses import Dims, Features
from losses.rkd import RKD

Double = torch.float64


def rkd(student: torch.Tensor, teacher: torch.Tensor, **keywords: float) -> torch.Tensor:
    loss = RKD(Dims(student.shape[1]), Dims(teacher.shape[1]), **keywords)
    return loss(Features(student), Features(teacher), {})


def huber(difference: float) -> float:
    return difference**2 / 2 if abs(difference) < 1 else abs(difference) - 0.5


def test_agrees_with_published_values(golden: Any) -> None:
    student = torch.from_numpy(golden["vector/student"]).requires_grad_()
    loss = rkd(student, torch.from_numpy(golden["vector/teacher"]))
    loss.backward()
    # The reference ran in fp32.
    np.testing.assert_allclose(loss.item(), golden["vector/rkd/loss"], rtol=1e-6)
    np.testing.assert_allclose(student.grad, golden["vector/rkd/grad_student"], rtol=1e-4, atol=1e-8)


def test_is_the_definition_written_out() -> None:
    student, teacher = (x.numpy() for x in vectors(6))
    distances, angles = [], []
    for x in (student, teacher):
        d = np.array([[np.sqrt(((a - b) ** 2).sum()) for b in x] for a in x])
        distances.append(d / (d.sum() / 30))
        angle = np.zeros((6, 6, 6))
        for i, j, k in np.ndindex(6, 6, 6):
            if i not in (j, k):
                angle[i, j, k] = (x[j] - x[i]) @ (x[k] - x[i]) / d[i, j] / d[i, k]
        angles.append(angle)
    distance, angle = (np.mean([huber(v) for v in (s - t).flat]) for s, t in (distances, angles))
    assert rkd(*vectors(6), distance=3, angle=0).item() == pytest.approx(3 * distance, rel=1e-12)
    assert rkd(*vectors(6), distance=0, angle=2).item() == pytest.approx(2 * angle, rel=1e-12)
    assert rkd(*vectors(6)).item() == pytest.approx(25 * distance + 50 * angle, rel=1e-12)


def test_place_turn_and_size_are_free() -> None:
    student, teacher = vectors(6)
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=Double, generator=torch.Generator().manual_seed(0)))[0]
    torch.testing.assert_close(rkd(7 * student @ turn + 3, teacher), rkd(student, teacher))
    assert rkd(7 * student @ turn + 3, student).abs() < 1e-12


def test_gradient_in_float64() -> None:
    student, teacher = vectors(5)
    assert torch.autograd.gradcheck(lambda x: rkd(x, teacher), student.requires_grad_())


@pytest.mark.parametrize("n", [1, 2])
def test_so_few_samples_have_no_relations(n: int) -> None:
    """One sample has no distance, the only distance of two is the mean, and there is no angle but 0."""
    student, teacher = vectors(n)
    loss = rkd(student.requires_grad_(), teacher)
    loss.backward()
    assert student.grad is not None
    torch.testing.assert_close(loss.detach(), torch.zeros((), dtype=Double))
    torch.testing.assert_close(student.grad, torch.zeros_like(student))


@pytest.mark.parametrize(("duplicates", "rounding"), [(2, 0), (6, 0), (2, 1e-7)])
def test_duplicates_give_no_gradient_out_of_scale(duplicates: int, rounding: float) -> None:
    student, teacher = vectors(6, torch.float32)
    student = torch.cat([student[:1].expand(duplicates, -1), student[duplicates:]])
    student[1] += rounding
    student.requires_grad_()
    loss = rkd(student, teacher)
    loss.backward()
    assert student.grad is not None
    assert loss.isfinite()
    assert student.grad.abs().max() < 100


def test_is_accurate_in_fp32_far_from_the_origin() -> None:
    """Features share a large mean after a ReLU; distances from inner products would lose their digits."""
    student, teacher = (x.float() + 100 for x in vectors(6))
    torch.testing.assert_close(
        rkd(student, teacher).double(), rkd(student.double(), teacher.double()), rtol=1e-5, atol=0
    )
