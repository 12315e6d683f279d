"""Knowledge distillation from standardised logits (Sun et al. 2024, arXiv 2403.01427)."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from annotated_types import Gt
from torch import Tensor

from losses.base import Batch, Dims, Features, full_precision
from losses.kd import KD


class LogitStandardisedKD(KD):
    """KD of `z(x) = (x - mean(x)) / std(x)`, every sample's logits by their own mean and (unbiased) deviation.

    The student then has to match the order and relative size of the teacher's logits, but neither their shift nor
    their scale. temperature: the paper's base temperature; published with the weight 9. Needs no labels.

    Raises ValueError if teacher and student do not have logits of the same, at least two, classes.
    """

    def __init__(self, student: Dims, teacher: Dims, *, temperature: Annotated[float, Gt(0)] = 2.0) -> None:
        super().__init__(student, teacher, temperature=temperature)
        if student.classes == 1:
            raise ValueError("LogitStandardisedKD needs two classes or more: one logit has no deviation.")

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        assert student.logits is not None
        assert teacher.logits is not None
        s, t = _standardise(student.logits), _standardise(teacher.logits)
        return super().forward(replace(student, logits=s), replace(teacher, logits=t), batch)


def _standardise(logits: Tensor) -> Tensor:
    x = full_precision(logits)
    # A head that starts at zero has no deviation: the floor bounds its first gradients.
    return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True).clamp(min=1e-3)
