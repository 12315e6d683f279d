"""Supervised cross-entropy on labelled samples or pixels."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Lt
from torch import Tensor
from torch.nn import functional as F

from losses.base import Batch, Dims, Features, Loss, full_precision
from losses.gather import ranks, sum_over_ranks
from losses.logits import target


class CrossEntropy(Loss):
    """Supervised softmax cross-entropy of the student's logits.

    The mean is over the labelled samples (or pixels) of the global batch; the label -1 is ignored. A batch without
    labels gives 0 and zero gradients.

    Args:
        label_smoothing: Probability mass that is distributed evenly over all classes.
    """

    needs_teacher = False
    needs_student_logits = True
    reads_pixels = True
    per_sample = True

    def __init__(
        self, student: Dims, teacher: Dims | None, *, label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def averaged(self, batch: Batch) -> Tensor:
        """Count the labelled samples or pixels."""
        label: Tensor = batch["mask" if "mask" in batch else "label"]
        return (label >= 0).sum()

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        assert student.logits is not None
        label = target(student, batch)
        total = F.cross_entropy(
            full_precision(student.logits),
            label,
            ignore_index=-1,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        # DDP averages over ranks, so each rank divides by the mean count, since labels may be unevenly distributed.
        labelled = sum_over_ranks((label >= 0).sum()).clamp(min=1)
        return total * ranks() / labelled
