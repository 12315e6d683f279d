"""WCoRD: the sum of the global (dual) and the local (primal) term (Chen et al. 2021, arXiv 2012.08674)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le
from torch import Tensor

from losses.base import Batch, Dims, Features, Loss, LossOutput, Metrics, full_precision
from losses.global_contrast import GlobalContrast
from losses.local_transport import LocalTransport
from losses.standardise import standardised


class WCoRD(Loss):
    """WCoRD: `global_weight * GlobalContrast + local_weight * LocalTransport`, on standardised student features.

    Both terms project the student's features linearly. Since these are standardised by batch statistics
    (`losses.standardise.standardised`), their scale and mean have no effect, and gradients do not grow when features
    shrink. The same weights work for any teacher, since both terms compare directions of standardised teacher features.

    Sample weights (`batch["weight"]`) only apply to the local term. To set further keywords, use the losses
    `global_contrast` and `local_transport` instead; these do not standardise the student's features.

    Args:
        student: Dims of the student.
        teacher: Dims of the teacher.
        global_weight: Weight of the global term.
        local_weight: Weight of the local term. Both default weights were chosen on the validation splits of
            `benchmarks.suite`.
        dim: Size of the projections of the global term.
        queue: Number of past samples that the global term uses as negatives.
        exclude: Samples that share a known label or group are not negatives of each other in the global term.
        epsilon: Entropic regularisation of the local term, in units of the cost `1 - cos`.
        anchor: Anchor of the local term, in [0, 1]. 0 maps each sample to its own pair (feature regression); 1 is plain
            transport.
        relational: Weight of the relational term, a part of the local term. It helps with a good teacher and few
            labels, but hurts with a teacher trained on another task or with mismatched pairs. The default is therefore
            0.
    """

    def __init__(
        self,
        student: Dims,
        teacher: Dims,
        *,
        global_weight: Annotated[float, Ge(0)] = 0.5,
        local_weight: Annotated[float, Ge(0)] = 2.0,
        dim: Annotated[int, Gt(0)] = 128,
        queue: Annotated[int, Ge(0)] = 1024,
        exclude: tuple[Literal["label", "group"], ...] = ("label", "group"),
        epsilon: Annotated[float, Gt(0)] = 0.1,
        anchor: Annotated[float, Ge(0), Le(1)] = 0.2,
        relational: Annotated[float, Ge(0)] = 0.0,
    ) -> None:
        super().__init__()
        self.global_weight, self.local_weight = global_weight, local_weight
        self.global_contrast = GlobalContrast(student, teacher, dim=dim, queue=queue, exclude=exclude)
        self.local_transport = LocalTransport(student, teacher, epsilon=epsilon, anchor=anchor, relational=relational)

    @classmethod
    def suspects(cls, settings: Mapping[str, Any]) -> dict[str, str]:
        return LocalTransport.suspects(settings)

    def forward(self, student: Features, teacher: Features, batch: Batch) -> LossOutput:
        student = replace(student, pooled=standardised(full_precision(student.pooled)))
        dual = self.global_contrast.with_metrics(student, teacher, batch)
        primal = self.local_transport.with_metrics(student, teacher, batch)
        names = {"transport": "local_weight", "relational": "relational"}
        parts = {"global_weight": self.global_weight * dual.loss}
        parts |= {names[name]: self.local_weight * value for name, value in primal.parts.items()}
        values = {"global": dual.loss.detach(), "local": primal.loss.detach()}
        return LossOutput.sum_of(parts, partial(metrics_of_terms, values, [dual.metrics, primal.metrics]))


def metrics_of_terms(values: dict[str, Tensor], reports: Sequence[Metrics]) -> dict[str, Tensor]:
    """Combine the values of the terms with the metrics of each term, prefixed by its name.

    Args:
        values: Term -> value.
        reports: The metrics functions of the terms, in the same order.
    """
    own = zip(values, reports, strict=True)
    return values | {f"{term}/{name}": value for term, report in own for name, value in report().items()}
