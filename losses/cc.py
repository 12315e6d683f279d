"""Correlation congruence (Peng et al. 2019, arXiv 1904.01802), in the form that the field's benchmark uses."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn

from losses.base import Batch, Dims, Features, Loss, full_precision
from losses.gather import gather


class CC(Loss):
    """`mean_i <delta_i, delta_i+1>`, `delta_i = |s_i - t_i|`: neighbours in the global batch must not err alike.

    dim: both `pooled` are embedded by a trained linear layer of this size; None compares them as they are. Needs no
    labels; published with dim 128 and the weight 0.02. Nothing keeps two trained embeddings from shrinking together,
    so the value alone does not tell how well the student follows. A batch of one has no neighbours and gives 0.

    Raises ValueError without embedding if the two `pooled` differ in size.
    """

    def __init__(self, student: Dims, teacher: Dims, *, dim: Annotated[int, Gt(0)] | None = 128) -> None:
        super().__init__()
        if dim is None and student.pooled != teacher.pooled:
            raise ValueError(
                f"CC without an embedding compares features of the same size; the student has {student.pooled}, the "
                f"teacher {teacher.pooled}. Set dim, 128 for example, to embed both."
            )
        self.student_embedding = nn.Linear(student.pooled, dim) if dim else nn.Identity()
        self.teacher_embedding = nn.Linear(teacher.pooled, dim) if dim else nn.Identity()

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        h_student, h_teacher = gather(full_precision(student.pooled)), gather(full_precision(teacher.pooled))
        with torch.autocast(h_student.device.type, enabled=False):
            delta = (self.student_embedding(h_student) - self.teacher_embedding(h_teacher)).abs()
        return (delta[:-1] * delta[1:]).sum() / max(len(delta) - 1, 1)
