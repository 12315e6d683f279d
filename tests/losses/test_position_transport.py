"""Transport between the positions of each sample's maps: plain Sinkhorn, sample by sample."""

from __future__ import annotations

import pytest
import torch
from cases import ToyNetwork, dims
from torch import Tensor

from losses import Dims, Features, PositionTransport, sinkhorn
from losses.unit import unit

STUDENT, TEACHER = dims(12, 3), dims(20, 5)


def made(size: int = 6, **keywords: float) -> tuple[PositionTransport, Features, Features]:
    torch.manual_seed(0)
    loss = PositionTransport(STUDENT, TEACHER, **keywords).double()  # type: ignore[arg-type]
    x = torch.randn(4, 5, dtype=torch.float64)
    student, teacher = ToyNetwork(STUDENT, size=size).double()(x), ToyNetwork(TEACHER, size=3).double()(x)
    loss(student, teacher, {})  # the standardisation has seen a batch
    return loss.eval(), student, teacher


def costs(loss: PositionTransport, student: Tensor, teacher: Tensor) -> Tensor:
    """Of maps of one size."""
    s, t = unit(loss.projection(student.flatten(2).mT)), unit(loss.standardise(teacher.flatten(2).mT))
    return 1 - s @ t.mT


def prior(n: int, anchor: float) -> Tensor:
    return (1 - anchor) * torch.eye(n, dtype=torch.float64) / n + anchor / n**2


def test_is_sinkhorn_sample_by_sample_on_the_smaller_grid() -> None:
    loss, student, teacher = made()
    small = torch.nn.functional.adaptive_avg_pool2d(student.maps[-1], 3)
    expected = [
        float((sinkhorn(cost, 0.1, 20, prior(9, 0.2).log()) * cost).sum())
        for cost in costs(loss, small, teacher.maps[-1])
    ]
    output = loss.with_metrics(student, teacher, {})
    assert output.loss.item() == pytest.approx(sum(expected) / 4)
    assert 0 < float(output.metrics()["plan_diagonal"]) < 1


def test_without_spread_it_is_regression_of_the_map() -> None:
    loss, student, teacher = made(size=3, anchor=0.0)
    expected = costs(loss, student.maps[-1], teacher.maps[-1]).diagonal(dim1=1, dim2=2).mean()
    torch.testing.assert_close(loss(student, teacher, {}), expected)


def test_an_even_plan_does_not_know_where_things_are() -> None:
    loss, student, teacher = made(size=3, anchor=1.0, iterations=300)
    turned = Features(student.pooled, [m.flip(3) for m in student.maps])
    torch.testing.assert_close(loss(turned, teacher, {}), loss(student, teacher, {}))


def test_the_gradient_is_that_of_the_entropic_optimum() -> None:
    """Of min_P <P, C> + epsilon KL(P || P0), whose value is differentiated numerically."""
    loss, student, teacher = made(size=3, iterations=500)
    leaf = student.maps[-1].detach().requires_grad_()
    (found,) = torch.autograd.grad(loss(Features(student.pooled, [leaf]), teacher, {}), leaf)

    def optimum(x: Tensor) -> float:
        cost = costs(loss, x, teacher.maps[-1])
        plan = sinkhorn(cost, 0.1, 500, prior(9, 0.2).log())
        return float((plan * cost + 0.1 * plan * (plan / prior(9, 0.2)).log()).sum((1, 2)).mean())

    step = 1e-5
    for place in [(0, 0, 0, 0), (1, 2, 1, 2), (3, 5, 2, 0)]:
        there, back = leaf.detach().clone(), leaf.detach().clone()
        there[place] += step
        back[place] -= step
        assert found[place].item() == pytest.approx((optimum(there) - optimum(back)) / (2 * step), abs=1e-7)


def test_a_layer_is_one_of_the_paired_maps() -> None:
    torch.manual_seed(0)
    student, teacher = Dims(12, (4, 6, 8), 3), Dims(20, (5, 7), 5)  # the last two are paired
    maps = [torch.randn(2, c, 4, 4) for c in (4, 6, 8, 5, 7)]
    seen = Features(torch.randn(2, 12), maps[:3]), Features(torch.randn(2, 20), maps[3:])
    for layer, (of_student, of_teacher) in {-2: (1, 3), 0: (1, 3), -1: (2, 4)}.items():
        loss = PositionTransport(student, teacher, layer=layer)
        alone = PositionTransport(Dims(12, (student.maps[of_student],), 3), Dims(20, (maps[of_teacher].shape[1],), 5))
        alone.load_state_dict(loss.state_dict())
        pair = Features(seen[0].pooled, [maps[of_student]]), Features(seen[1].pooled, [maps[of_teacher]])
        assert loss(*seen, {}) == alone(*pair, {})
    with pytest.raises(ValueError, match="layer -3 does not exist: 2 maps can be paired"):
        PositionTransport(student, teacher, layer=-3)


def test_tokens_are_positions() -> None:
    loss, student, teacher = made(size=3)
    tokens = torch.cat([torch.randn(4, 1, 6, dtype=torch.float64), student.maps[-1].flatten(2).mT], 1)
    torch.testing.assert_close(loss(Features(student.pooled, [tokens]), teacher, {}), loss(student, teacher, {}))


def test_needs_maps() -> None:
    with pytest.raises(ValueError, match=r"PositionTransport compares feature maps, but the student has none"):
        PositionTransport(Dims(12), TEACHER)
