"""Correlation congruence (Peng et al. 2019, arXiv 1904.01802), as implemented in the CRD benchmark."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn

from losses.base import Batch, Dims, Features, Loss, full_precision
from losses.gather import gather


class CC(Loss):
    """Correlation congruence: penalise correlated errors between consecutive samples of the global batch.

    `loss = mean_i <delta_i, delta_i+1>` with `delta_i = |s_i - t_i|`. Requires no labels. Published with dim 128 and
    weight 0.02. Both embeddings are trained and can shrink together, so the value alone does not show how well the
    student matches the teacher. A batch of one sample gives 0.

    Args:
        dim: Output size of the trained linear layers that embed the `pooled` features of both networks. None compares
            the features directly.

    Raises:
        ValueError: `dim` is None, but the `pooled` features of the networks differ in size.
    """

    def __init__(self, student: Dims, teacher: Dims, *, dim: Annotated[int, Gt(0)] | None = 128) -> None:
        super().__init__()
        if dim is None and student.pooled != teacher.pooled:
            raise ValueError(
                f"CC without an embedding requires features of the same size; the student has {student.pooled}, the "
                f"teacher {teacher.pooled}. Set dim, e.g. 128, to embed both."
            )
        self.student_embedding = nn.Linear(student.pooled, dim) if dim else nn.Identity()
        self.teacher_embedding = nn.Linear(teacher.pooled, dim) if dim else nn.Identity()

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        h_student, h_teacher = gather(full_precision(student.pooled)), gather(full_precision(teacher.pooled))
        with torch.autocast(h_student.device.type, enabled=False):
            delta = (self.student_embedding(h_student) - self.teacher_embedding(h_teacher)).abs()
        return (delta[:-1] * delta[1:]).sum() / max(len(delta) - 1, 1)
