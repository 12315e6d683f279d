from typing import Any

import numpy as np
import pytest
import torch
from cases import of_maps

from losses import Dims
from losses.sp import SP

STUDENT, TEACHER = Dims(8, maps=(12,)), Dims(8, maps=(20,))
Double = torch.float64


def sp(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return SP(STUDENT, TEACHER)(of_maps(student), of_maps(teacher), {})


def test_agrees_with_published_values(golden: Any) -> None:
    student = torch.from_numpy(golden["map/student"]).requires_grad_()
    loss = sp(student, torch.from_numpy(golden["map/teacher"]))
    loss.backward()
    # The reference ran in fp32.
    np.testing.assert_allclose(loss.item(), golden["map/sp/same/loss"].item(), rtol=1e-5)
    np.testing.assert_allclose(student.grad, golden["map/sp/same/grad_student"], rtol=1e-4, atol=1e-8)


def test_is_the_definition_written_out() -> None:
    s, t = torch.randn(3, 12, 4, 5, dtype=Double), torch.randn(3, 20, 2, 2, dtype=Double)
    rows = [[[float((m[i] * m[j]).sum()) for j in range(3)] for i in range(3)] for m in (s, t)]
    g_s, g_t = (np.array(r) / np.linalg.norm(r, axis=1, keepdims=True) for r in rows)
    torch.testing.assert_close(sp(s, t).item(), float(((g_s - g_t) ** 2).sum() / 9))


def test_compares_the_last_maps() -> None:
    s, t = torch.randn(3, 12, 4, 4), torch.randn(3, 20, 4, 4)
    loss = SP(Dims(8, maps=(4, 12)), Dims(8, maps=(5, 6, 20)))
    first = [torch.randn(3, c, 8, 8) for c in (4, 5, 6)]
    torch.testing.assert_close(loss(of_maps(first[0], s), of_maps(*first[1:], t), {}), sp(s, t))


def test_ignores_scale_and_order_of_the_pairs() -> None:
    s, t = torch.randn(5, 12, 4, 4, dtype=Double), torch.randn(5, 20, 4, 4, dtype=Double)
    order = torch.randperm(5)
    torch.testing.assert_close(sp(3 * s[order], t[order]), sp(s, t))
    torch.testing.assert_close(sp(torch.cat([s, s], 1), s), torch.zeros((), dtype=Double))
    torch.testing.assert_close(sp(s.flatten(2).mT, t.flatten(2).mT), sp(s, t))
    assert sp(s, t.roll(1, 0)) != sp(s, t)


def test_gradient_in_float64() -> None:
    t = torch.randn(4, 20, 2, 2, dtype=Double)
    s = torch.randn(4, 12, 2, 2, dtype=Double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: sp(x, t), s)


def test_a_dead_sample_has_a_moderate_gradient() -> None:
    alive, teacher = torch.randn(5, 12, 4, 4), torch.randn(6, 20, 4, 4)
    student = torch.cat([alive, torch.zeros(1, 12, 4, 4)]).requires_grad_()
    sp(student, teacher).backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1


def test_one_sample_gives_zero() -> None:
    s = torch.randn(1, 12, 4, 4, requires_grad=True)
    loss = sp(s, torch.randn(1, 20, 4, 4))
    loss.backward()
    assert loss.abs() < 1e-6
    assert s.grad.abs().max() < 1e-6


def test_refuses_networks_without_maps() -> None:
    with pytest.raises(ValueError, match="the student has none"):
        SP(Dims(8), TEACHER)
    with pytest.raises(ValueError, match="the teacher has none"):
        SP(STUDENT, Dims(8))
