"""The gradient norm of each term of the objective with respect to the student's features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from losses import Features
from losses.base import full_precision
from losses.gather import sum_over_ranks
from pipeline.models.sharded import full_tensor

Part = tuple[str, str]
"""A loss, and the keyword of its weight or of the weight of a part: `("kd", "weight")`, `("wcord", "relational")`."""


@dataclass(frozen=True)
class Trace:
    """The graph of a forward pass from the student's features to the weighted terms, before its backward.

    Attributes:
        student: The features that the losses received.
        weighted: Part -> scalar; the objective is their sum.
        head: The student's classifier, if it has one.
        single_use: Whether the graph of the losses supports only one backward pass, since compiled parts may reuse
            their buffers.
    """

    student: Features
    weighted: Mapping[Part, Tensor]
    head: nn.Module | None
    single_use: bool

    def pulls(self) -> dict[Part, float]:
        """Compute the norm of the gradient of each weighted term with respect to the student's features.

        The norm is over the global batch; call it on all ranks. If the graph supports only one backward pass, the
        weighted values are returned instead.
        """
        squares = {
            part: value.detach().square() if self.single_use else _squared_pull(value, self.student, self.head)
            for part, value in self.weighted.items()
        }
        return {part: float(sum_over_ranks(square).sqrt()) for part, square in squares.items()}


def traceable(features: Features) -> Features:
    """Make views of the features. Gradients with respect to these do not trigger backward hooks of the networks."""
    logits = features.logits
    return Features(
        features.pooled.view_as(features.pooled),
        [x.view_as(x) for x in features.maps],
        None if logits is None else logits.view_as(logits),
    )


def single_use(loss: nn.Module) -> bool:
    """Whether the graph of a loss has compiled parts, whose buffers the first backward pass may reuse."""
    return any(
        getattr(part, "compiled", False) and getattr(part, "plan_gradient", "detached") != "detached"
        for part in loss.modules()
    )


def _squared_pull(value: Tensor, student: Features, head: nn.Module | None) -> Tensor:
    """Squared norm of the gradient of a scalar with respect to the student's pooled features, on this rank.

    The gradient of logits `[B, K]` is backpropagated through a linear head. The gradient of maps counts as if it were
    the gradient of their mean over positions.
    """
    seen = [x for x in (student.pooled, student.logits, *student.maps) if x is not None and x.requires_grad]
    if not seen or not value.requires_grad:  # frozen, or no gradient in this batch
        return torch.zeros_like(value)
    found = zip(seen, torch.autograd.grad(value, seen, retain_graph=True, allow_unused=True), strict=True)
    pulled = {id(x): g for x, g in found if g is not None}
    pooled = pulled.get(id(student.pooled), torch.zeros_like(student.pooled))
    if (g := pulled.get(id(student.logits))) is not None and g.ndim == 2 and isinstance(head, nn.Linear):
        pooled = pooled + g @ full_precision(full_tensor(head.weight.detach()))
    maps = [g.square().sum() * g.flatten(2).shape[2] for x in student.maps if (g := pulled.get(id(x))) is not None]
    return torch.stack([pooled.square().sum(), *maps]).sum()
