"""Every position of one side is told which sample of the other side it belongs to."""

from __future__ import annotations

import math

import pytest
import torch
from cases import ToyNetwork, dims
from torch import Tensor

from losses import Dims, Features, LocalGlobal

STUDENT, TEACHER = dims(12, 3), dims(20, 5)


def made(**keywords: int) -> tuple[LocalGlobal, Features, Features]:
    torch.manual_seed(0)
    loss = LocalGlobal(STUDENT, TEACHER, dim=7, **keywords).double()
    x = torch.randn(6, 5, dtype=torch.float64)
    return loss, ToyNetwork(STUDENT, size=6).double()(x), ToyNetwork(TEACHER, size=3).double()(x)


def batch(*groups: int) -> dict[str, Tensor]:
    return {"group": torch.tensor(groups), "label": torch.full((len(groups),), -1)}


def by_hand(loss: LocalGlobal, student: Features, teacher: Features, group: list[int]) -> float:
    """The formula, an anchor at a time."""
    tau = loss.log_temperature.exp().item()
    ways = [
        (loss.student_local, student.maps[-1], loss.teacher_global(teacher.pooled)),
        (loss.teacher_local, teacher.maps[-1], loss.student_global(student.pooled)),
    ]
    means = []
    for projection, maps, whole in ways:
        terms = []
        for i, sample in enumerate(maps):
            negatives = [j for j in range(len(maps)) if j == i or group[j] != group[i] or group[i] < 0]
            for column in sample.flatten(1).T:
                scores = (whole[negatives] @ projection(column[None])[0] / tau).tolist()
                own = scores[negatives.index(i)]
                terms.append(math.log(sum(math.exp(score) for score in scores)) - own)
        means.append(sum(terms) / len(terms))
    return sum(means) / 2


@pytest.mark.parametrize("group", [[-1] * 6, [0, 0, 1, -1, -1, 1]])
def test_is_the_formula(group: list[int]) -> None:
    loss, student, teacher = made()
    assert loss(student, teacher, batch(*group)).item() == pytest.approx(by_hand(loss, student, teacher, group))


def test_a_single_sample_has_nothing_to_be_told_from() -> None:
    loss, student, teacher = made()
    first = [Features(f.pooled[:1], [m[:1] for m in f.maps]) for f in (student, teacher)]
    assert loss(*first, batch(-1)).item() == 0


def test_larger_maps_are_pooled_and_tokens_are_positions() -> None:
    loss, student, teacher = made(side=2)
    small = Features(student.pooled, [torch.nn.functional.adaptive_avg_pool2d(student.maps[-1], 2)])
    expected = loss(student, teacher, batch(*[-1] * 6))
    torch.testing.assert_close(loss(small, teacher, batch(*[-1] * 6)), expected)
    cls = torch.randn(6, 1, small.maps[0].shape[1], dtype=torch.float64)
    tokens = Features(student.pooled, [torch.cat([cls, small.maps[0].flatten(2).mT], 1)])
    torch.testing.assert_close(loss(tokens, teacher, batch(*[-1] * 6)), expected)


def test_needs_maps() -> None:
    with pytest.raises(ValueError, match=r"LocalGlobal compares feature maps, but the teacher has none"):
        LocalGlobal(STUDENT, Dims(20))
