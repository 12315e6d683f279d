"""WCoRD: the global (dual) and the local (primal) term together (Chen et al. 2021, arXiv 2012.08674)."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le
from torch import Tensor

from losses.base import Batch, Dims, Features, Loss
from losses.global_contrast import GlobalContrast
from losses.local_transport import LocalTransport


class WCoRD(Loss):
    """`global_weight * GlobalContrast + local_weight * LocalTransport`; the other keywords are theirs.

    The weights are those of the study in docs/method.md. A larger `relational` helps where the teacher is good and the
    steps are many, and collapses the student elsewhere.
    List `global_contrast` and `local_transport` on their own to set everything that they offer. Sample weights
    (batch["weight"]) count in the local term alone.
    """

    def __init__(
        self,
        student: Dims,
        teacher: Dims,
        *,
        global_weight: Annotated[float, Ge(0)] = 0.5,
        local_weight: Annotated[float, Ge(0)] = 6.0,
        dim: Annotated[int, Gt(0)] = 128,
        queue: Annotated[int, Ge(0)] = 1024,
        exclude: tuple[Literal["label", "group"], ...] = ("label", "group"),
        epsilon: Annotated[float, Gt(0)] = 0.1,
        anchor: Annotated[float, Ge(0), Le(1)] = 0.2,
        relational: Annotated[float, Ge(0)] = 0.15,
    ) -> None:
        super().__init__()
        self.global_weight, self.local_weight = global_weight, local_weight
        self.global_contrast = GlobalContrast(student, teacher, dim=dim, queue=queue, exclude=exclude)
        self.local_transport = LocalTransport(student, teacher, epsilon=epsilon, anchor=anchor, relational=relational)

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        dual = self.global_contrast(student, teacher, batch)
        primal = self.local_transport(student, teacher, batch)
        self._last = dual.detach(), primal.detach()
        return self.global_weight * dual + self.local_weight * primal

    def metrics(self) -> dict[str, Tensor]:
        parts = {"global": self.global_contrast, "local": self.local_transport}
        own = {f"{part}/{name}": value for part, loss in parts.items() for name, value in loss.metrics().items()}
        return dict(zip(parts, self._last, strict=False)) | own
