"""PKT against published values and its definition written out."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from cases import vectors

from losses import Dims, Features
from losses.pkt import PKT

Double = torch.float64


def pkt(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return PKT(Dims(student.shape[1]), Dims(teacher.shape[1]))(Features(student), Features(teacher), {})


def test_agrees_with_published_values(golden: Any) -> None:
    student = torch.from_numpy(golden["vector/student"]).requires_grad_()
    loss = pkt(student, torch.from_numpy(golden["vector/teacher"]))
    loss.backward()
    # The reference ran in fp32; summands of both signs cancel.
    np.testing.assert_allclose(loss.item(), golden["vector/pkt/loss"], rtol=2e-6)
    np.testing.assert_allclose(student.grad, golden["vector/pkt/grad_student"], rtol=1e-4, atol=1e-9)


def test_is_the_definition_written_out() -> None:
    student, teacher = vectors(6)
    q, p = np.zeros((6, 6)), np.zeros((6, 6))
    for matrix, x in ((q, student.numpy()), (p, teacher.numpy())):
        for i, j in np.ndindex(6, 6):
            matrix[i, j] = (1 + x[i] @ x[j] / math.sqrt(x[i] @ x[i]) / math.sqrt(x[j] @ x[j])) / 2
        matrix /= matrix.sum(1, keepdims=True)
    expected = sum(p[i, j] * math.log(p[i, j] / q[i, j]) for i, j in np.ndindex(6, 6)) / 36
    assert pkt(student, teacher).item() == pytest.approx(expected, rel=1e-5)  # an epsilon of 1e-7 in the logarithm


def test_length_of_every_sample_and_turn_of_all_are_free() -> None:
    rng = torch.Generator().manual_seed(0)
    student, teacher = vectors(6)
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=Double, generator=rng))[0]
    length = torch.rand(6, 1, dtype=Double, generator=rng) + 0.1
    torch.testing.assert_close(pkt(length * student @ turn, teacher), pkt(student, teacher))
    assert pkt(length * student @ turn, student).abs() < 1e-12


def test_gradient_in_float64() -> None:
    student, teacher = vectors(5)
    assert torch.autograd.gradcheck(lambda x: pkt(x, teacher), student.requires_grad_())


def test_one_sample_has_no_neighbours() -> None:
    student, teacher = vectors(1)
    loss = pkt(student.requires_grad_(), teacher)
    loss.backward()
    assert student.grad is not None
    assert loss.abs() < 1e-12
    assert student.grad.abs().max() < 1e-12


def test_opposite_and_dead_features_are_finite() -> None:
    student, teacher = vectors(4, torch.float32)
    student = torch.stack([student[0], -student[0], 0 * student[0], student[1]]).requires_grad_()
    loss = pkt(student, teacher)
    loss.backward()
    assert student.grad is not None
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert (student.grad[2] == 0).all()
