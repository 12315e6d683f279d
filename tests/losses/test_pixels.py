"""Logits of pixels: what reads them sees every pixel as a sample."""

from __future__ import annotations

import pytest
import torch

from losses import KD, CrossEntropy, Dims, Features, LogitStandardisedKD

DIMS = Dims(8, classes=5, dense=True)


def seen(height: int, width: int) -> Features:
    return Features(torch.zeros(3, 8), logits=torch.randn(3, 5, height, width, dtype=torch.float64))


def flat(features: Features) -> Features:
    assert features.logits is not None
    return Features(torch.zeros(1), logits=features.logits.permute(0, 2, 3, 1).reshape(-1, 5))


def test_cross_entropy_is_the_mean_over_known_pixels() -> None:
    student, mask = seen(4, 6), torch.randint(-1, 5, (3, 4, 6))
    loss = CrossEntropy(DIMS, None, label_smoothing=0.1)
    found = loss(student, None, {"mask": mask, "label": torch.full((3,), -1)})
    torch.testing.assert_close(found, loss(flat(student), None, {"label": mask.flatten()}))
    assert loss(student, None, {"mask": torch.full_like(mask, -1)}) == 0


@pytest.mark.parametrize("kind", [KD, LogitStandardisedKD])
def test_distillation_is_the_mean_over_all_pixels(kind: type[KD]) -> None:
    student, teacher = seen(4, 6), seen(4, 6)
    loss = kind(DIMS, DIMS)
    torch.testing.assert_close(loss(student, teacher, {}), loss(flat(student), flat(teacher), {}))


def test_a_teacher_of_another_size_is_brought_to_the_students() -> None:
    student, teacher = seen(4, 6), seen(8, 12)
    assert teacher.logits is not None
    small = Features(teacher.pooled, logits=torch.nn.functional.interpolate(teacher.logits, (4, 6), mode="bilinear"))
    loss = KD(DIMS, DIMS)
    torch.testing.assert_close(loss(student, teacher, {}), loss(student, small, {}))
