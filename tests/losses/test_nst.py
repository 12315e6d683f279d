from typing import Any

import numpy as np
import pytest
import torch
from cases import of_maps
from torch.nn import functional as F

from losses import Dims
from losses.nst import NST

STUDENT, TEACHER = Dims(8, maps=(12,)), Dims(8, maps=(20,))
Double = torch.float64


def nst(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return NST(STUDENT, TEACHER)(of_maps(student), of_maps(teacher), {})


@pytest.mark.parametrize(("case", "key"), [("same", "map/teacher"), ("small", "map/teacher_small")])
def test_agrees_with_published_values(case: str, key: str, golden: Any) -> None:
    student = torch.from_numpy(golden["map/student"]).requires_grad_()
    loss = nst(student, torch.from_numpy(golden[key]))
    loss.backward()
    # The reference ran in fp32.
    np.testing.assert_allclose(loss.item(), golden[f"map/nst/{case}/loss"], rtol=1e-5)
    np.testing.assert_allclose(student.grad, golden[f"map/nst/{case}/grad_student"], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("size", [2, 6])  # fewer positions than channels, and more
def test_is_the_definition_written_out(size: int) -> None:
    s, t = torch.randn(2, 5, size, size, dtype=Double), torch.randn(2, 7, size, size, dtype=Double)
    total = 0.0
    for i in range(2):
        x, y = (F.normalize(m[i].flatten(1), dim=1) for m in (s, t))
        k = lambda a, b: np.mean([float(p @ q) ** 2 for p in a for q in b])  # noqa: E731
        total += k(x, x) + k(y, y) - 2 * k(x, y)
    torch.testing.assert_close(nst(s, t).item(), total / 2)


def test_adds_up_the_last_maps() -> None:
    s = [torch.randn(3, c, n, n, dtype=Double) for c, n in ((4, 8), (12, 4))]
    t = [torch.randn(3, c, n, n, dtype=Double) for c, n in ((5, 16), (6, 8), (20, 4))]
    loss = NST(Dims(8, maps=(4, 12)), Dims(8, maps=(5, 6, 20)))
    torch.testing.assert_close(loss(of_maps(*s), of_maps(*t), {}), nst(s[0], t[1]) + nst(s[1], t[2]))


def test_starts_with_the_first_pair_that_is_asked_for() -> None:
    s = [torch.randn(3, c, n, n, dtype=Double) for c, n in ((4, 8), (12, 4))]
    loss = NST(Dims(8, maps=(4, 12)), Dims(8, maps=(4, 12)), first=1)
    torch.testing.assert_close(loss(of_maps(*s), of_maps(s[1], s[0]), {}), nst(s[1], s[0]))


def test_ignores_each_channels_scale_and_order() -> None:
    s, t = torch.randn(3, 12, 4, 4, dtype=Double), torch.randn(3, 20, 4, 4, dtype=Double)
    scaled = s[:, torch.randperm(12)] * torch.rand(3, 12, 1, 1, dtype=Double).add(0.1)
    torch.testing.assert_close(nst(scaled, t), nst(s, t))
    torch.testing.assert_close(nst(torch.cat([s, s], 1), s), torch.zeros((), dtype=Double))
    assert nst(s, t) > 1e-3


def test_tokens_are_positions() -> None:
    s, t = torch.randn(3, 12, 4, 4, dtype=Double), torch.randn(3, 20, 4, 4, dtype=Double)
    torch.testing.assert_close(nst(s.flatten(2).mT, t.flatten(2).mT), nst(s, t))


@pytest.mark.parametrize("size", [2, 4])
def test_gradient_in_float64(size: int) -> None:
    t = torch.randn(2, 7, size, size, dtype=Double)
    s = torch.randn(2, 5, size, size, dtype=Double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: nst(x, t), s)


def test_one_dead_channel_is_finite() -> None:
    s = torch.randn(1, 12, 5, 5)
    s[:, 0] = 0
    s.requires_grad_()
    nst(s, torch.randn(1, 20, 5, 5)).backward()
    assert torch.isfinite(s.grad).all()


def test_refuses_networks_without_maps() -> None:
    with pytest.raises(ValueError, match="the student has none"):
        NST(Dims(8), TEACHER)
    with pytest.raises(ValueError, match="the teacher has none"):
        NST(STUDENT, Dims(8))
