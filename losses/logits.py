"""What losses on logits share: the check that both sides have them, the pair itself, and what they should say."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from losses.base import Batch, Dims, Features, full_precision, known


def paired_classes(loss: str, student: Dims, teacher: Dims, least: int = 1) -> int:
    """How many classes both sides have logits of; ValueError if they differ, or are fewer than `least`."""
    if student.classes is None or student.classes != teacher.classes or student.classes < least:
        number = f", {least} or more," if least > 1 else ""
        raise ValueError(
            f"{loss} needs logits of the same classes{number} on both sides; the student has {student.classes}, the "
            f"teacher {teacher.classes}. Use a feature loss (wcord, info_nce) for a teacher of another task."
        )
    return student.classes


def paired_logits(student: Features, teacher: Features) -> tuple[Tensor, Tensor]:
    """Both sides' logits `[B, K]`, at least fp32; those of pixels as `[B H W, K]`, at the student's size."""
    assert student.logits is not None
    assert teacher.logits is not None
    s, t = full_precision(student.logits), full_precision(teacher.logits)
    if s.ndim == 2:
        return s, t
    if t.shape[2:] != s.shape[2:]:
        t = F.interpolate(t, s.shape[2:], mode="bilinear")
    return s.movedim(1, -1).flatten(0, -2), t.movedim(1, -1).flatten(0, -2)


def target(student: Features, batch: Batch) -> Tensor:
    """The classes that the student's logits should say, -1 where unknown: `label [B]`, or `mask [B, H, W]`."""
    assert student.logits is not None
    label: Tensor = known(batch, "label", student.logits) if student.logits.ndim == 2 else batch["mask"]
    return label
