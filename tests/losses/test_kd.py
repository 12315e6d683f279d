from typing import Any

import numpy as np
import pytest
import torch

from losses import KD, Dims, Features

DIMS = Dims(8, classes=100)


def kd(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 4.0) -> torch.Tensor:
    loss = KD(DIMS, DIMS, temperature=temperature)
    empty = torch.empty(len(student), 0)
    return loss(Features(empty, logits=student), Features(empty, logits=teacher), {})


def test_agrees_with_published_values(golden: Any) -> None:
    student = torch.from_numpy(golden["logit/student"]).requires_grad_()
    loss = kd(student, torch.from_numpy(golden["logit/teacher"]))
    loss.backward()
    # The reference ran in fp32.
    np.testing.assert_allclose(loss.item(), golden["logit/kd_T4/loss"], rtol=1e-6)
    np.testing.assert_allclose(student.grad, golden["logit/kd_T4/grad_student"], rtol=1e-4, atol=1e-8)


def test_is_the_definition_written_out() -> None:
    student, teacher = torch.randn(2, 5, 100, dtype=torch.float64).unbind()
    p, q = (torch.softmax(x / 3, 1) for x in (teacher, student))
    torch.testing.assert_close(kd(student, teacher, 3), 9 * (p * (p / q).log()).sum(1).mean())


def test_gradient_in_float64() -> None:
    student = torch.randn(4, 100, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: kd(x, torch.ones(4, 100, dtype=torch.float64)), student)


def test_ignores_a_constant_added_to_the_logits() -> None:
    student, teacher = torch.randn(2, 5, 100).unbind()
    torch.testing.assert_close(kd(student + 3, teacher - 2), kd(student, teacher))


def test_refuses_other_classes() -> None:
    with pytest.raises(ValueError, match="same classes"):
        KD(Dims(8, classes=10), Dims(8, classes=12))
    with pytest.raises(ValueError, match="same classes"):
        KD(Dims(8, classes=10), Dims(8))
