"""Helpers of losses on logits: checks, pairing and targets."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from losses.base import Batch, Dims, Features, full_precision, known


def paired_classes(loss: str, student: Dims, teacher: Dims, least: int = 1) -> int:
    """Check that both networks have logits for the same classes.

    Args:
        loss: Name of the loss, for the message.
        student: Dims of the student.
        teacher: Dims of the teacher.
        least: Minimum number of classes.

    Returns:
        The number of classes.

    Raises:
        ValueError: The numbers differ, or are below `least`.
    """
    if student.classes is None or student.classes != teacher.classes or student.classes < least:
        number = f", {least} or more," if least > 1 else ""
        raise ValueError(
            f"{loss} requires student and teacher to have logits for the same classes{number}; the student has "
            f"{student.classes}, the teacher {teacher.classes}. Use a feature loss (wcord, info_nce) for a teacher of "
            "another task."
        )
    return student.classes


def paired_logits(student: Features, teacher: Features) -> tuple[Tensor, Tensor]:
    """Get the logits of both networks in at least fp32.

    Returns:
        `[B, K]` each. For per-pixel logits, `[B H W, K]` each, at the resolution of the student.
    """
    assert student.logits is not None
    assert teacher.logits is not None
    s, t = full_precision(student.logits), full_precision(teacher.logits)
    if s.ndim == 2:
        return s, t
    if t.shape[2:] != s.shape[2:]:
        t = F.interpolate(t, s.shape[2:], mode="bilinear")
    return s.movedim(1, -1).flatten(0, -2), t.movedim(1, -1).flatten(0, -2)


def target(student: Features, batch: Batch) -> Tensor:
    """Get the target classes of the student's logits.

    Returns:
        int64, -1 if unknown: `label [B]`, or `mask [B, H, W]` for per-pixel logits.
    """
    assert student.logits is not None
    label: Tensor = known(batch, "label", student.logits) if student.logits.ndim == 2 else batch["mask"]
    return label
