"""Knowledge distillation from standardised logits (Sun et al. 2024, arXiv 2403.01427)."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from annotated_types import Gt
from torch import Tensor

from losses.base import Batch, Dims, Features
from losses.kd import KD
from losses.logits import paired_classes, paired_logits


class LogitStandardisedKD(KD):
    """KD on standardised logits: `z(x) = (x - mean(x)) / std(x)` per sample, with the unbiased standard deviation.

    The student then has to match the order and relative sizes of the teacher's logits, but not their shift and scale.
    Requires no labels. Published with weight 9.

    Args:
        temperature: The base temperature of the paper.

    Raises:
        ValueError: Teacher and student do not both have logits for the same classes (at least two).
    """

    def __init__(self, student: Dims, teacher: Dims, *, temperature: Annotated[float, Gt(0)] = 2.0) -> None:
        super().__init__(student, teacher, temperature=temperature)
        paired_classes("LogitStandardisedKD", student, teacher, least=2)  # one logit has no deviation

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        s, t = (_standardise(x) for x in paired_logits(student, teacher))
        return super().forward(replace(student, logits=s), replace(teacher, logits=t), batch)


def _standardise(x: Tensor) -> Tensor:
    # A head that is initialised with zeros has a standard deviation of 0: the minimum bounds its first gradients.
    return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True).clamp(min=1e-3)
