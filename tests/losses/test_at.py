from typing import Any

import numpy as np
import pytest
import torch
from cases import of_maps
from torch.nn import functional as F

from losses import Dims
from losses.at import AT

STUDENT, TEACHER = Dims(8, maps=(12,)), Dims(8, maps=(20,))
Double = torch.float64


def at(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return AT(STUDENT, TEACHER)(of_maps(student), of_maps(teacher), {})


@pytest.mark.parametrize(("case", "key"), [("same", "map/teacher"), ("small", "map/teacher_small")])
def test_agrees_with_published_values(case: str, key: str, golden: Any) -> None:
    student = torch.from_numpy(golden["map/student"]).requires_grad_()
    loss = at(student, torch.from_numpy(golden[key]))
    loss.backward()
    # The reference ran in fp32.
    np.testing.assert_allclose(loss.item(), golden[f"map/at/{case}/loss"], rtol=1e-5)
    np.testing.assert_allclose(student.grad, golden[f"map/at/{case}/grad_student"], rtol=1e-4, atol=1e-8)


def test_is_the_definition_written_out() -> None:
    s, t = torch.randn(3, 12, 4, 5, dtype=Double), torch.randn(3, 20, 4, 5, dtype=Double)
    total = 0.0
    for i in range(3):
        q_s, q_t = (sum(m[i, c] ** 2 for c in range(m.shape[1])) for m in (s, t))
        total += float(((q_s / q_s.norm() - q_t / q_t.norm()) ** 2).sum())
    torch.testing.assert_close(at(s, t).item(), total / (3 * 20))


def test_pairs_the_last_maps_and_adds_them_up() -> None:
    s = [torch.randn(3, c, n, n, dtype=Double) for c, n in ((4, 8), (12, 4))]
    t = [torch.randn(3, c, n, n, dtype=Double) for c, n in ((5, 16), (6, 8), (20, 4))]
    loss = AT(Dims(8, maps=(4, 12)), Dims(8, maps=(5, 6, 20)))
    expected = at(s[0], t[1]) + at(s[1], t[2])
    torch.testing.assert_close(loss(of_maps(*s), of_maps(*t), {}), expected)


def test_starts_with_the_first_pair_that_is_asked_for() -> None:
    s = [torch.randn(3, c, n, n, dtype=Double) for c, n in ((4, 8), (12, 4))]
    t = [torch.randn(3, c, n, n, dtype=Double) for c, n in ((6, 8), (20, 4))]
    dims = Dims(8, maps=(4, 12)), Dims(8, maps=(6, 20))
    torch.testing.assert_close(AT(*dims, first=1)(of_maps(*s), of_maps(*t), {}), at(s[1], t[1]))
    with pytest.raises(ValueError, match="first: 2 leaves no pairs of maps"):
        AT(*dims, first=2)


def test_ignores_scale_sign_and_order_of_channels() -> None:
    s, t = torch.randn(3, 12, 4, 4, dtype=Double), torch.randn(3, 20, 4, 4, dtype=Double)
    torch.testing.assert_close(at(-3 * s[:, torch.randperm(12)], t), at(s, t))
    torch.testing.assert_close(at(s.mean(1, keepdim=True).expand(-1, 4, -1, -1), s.mean(1, keepdim=True)), at(s, s))
    assert at(s, t) > 1e-4


def test_tokens_are_positions() -> None:
    s, t = torch.randn(3, 12, 4, 4, dtype=Double), torch.randn(3, 20, 4, 4, dtype=Double)
    tokens = [x.flatten(2).mT for x in (s, t)]
    torch.testing.assert_close(at(*tokens), at(s, t))


def test_tokens_meet_maps() -> None:
    t = torch.randn(2, 20, 7, 7, dtype=Double)
    means = F.adaptive_avg_pool2d(t, (7, 1))
    s = torch.randn(2, 50, 12, dtype=Double)
    pooled = F.adaptive_avg_pool1d(s.mT, 7)[..., None]
    torch.testing.assert_close(at(s, t), at(pooled, means))


def test_gradient_in_float64() -> None:
    t = torch.randn(2, 20, 3, 3, dtype=Double)
    s = torch.randn(2, 12, 4, 3, dtype=Double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: at(x, t), s)


def test_one_dead_sample_is_finite() -> None:
    s = torch.zeros(1, 12, 4, 4, requires_grad=True)
    at(s, torch.randn(1, 20, 4, 4)).backward()
    assert torch.isfinite(s.grad).all()


def test_refuses_networks_without_maps() -> None:
    with pytest.raises(ValueError, match="the student has none"):
        AT(Dims(8), TEACHER)
    with pytest.raises(ValueError, match="the teacher has none"):
        AT(STUDENT, Dims(8))
