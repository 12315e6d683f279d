"""What losses on logits share: the check that both sides have them, and the pair itself."""

from __future__ import annotations

from torch import Tensor

from losses.base import Dims, Features, full_precision


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
    """Both sides' logits `[B, K]`, at least fp32."""
    assert student.logits is not None
    assert teacher.logits is not None
    return full_precision(student.logits), full_precision(teacher.logits)
