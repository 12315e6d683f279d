"""One module that contains frozen teacher, student and losses, so DDP finds all trainable parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from losses import Features, LocalTransport, PositionTransport
from losses.base import Loss, LossOutput, Metrics, full_precision
from losses.diagnostics import effective_rank, relative_std
from losses.gather import gather
from pipeline.data.feature_cache import Cache
from pipeline.data.views import Batch, ViewSpec
from pipeline.models.cached_teacher import CachedTeacher
from pipeline.models.gradient_cache import in_parts
from pipeline.models.network import Joint, Network, digest, sight
from pipeline.models.pair_filter import PairFilter
from pipeline.models.pulls import Part, Trace, single_use, traceable
from pipeline.models.unpaired import term


class DistillationOutput(NamedTuple):  # a tuple, since DDP searches tuples for the loss
    """The output of a forward pass: the objective and its metrics.

    Attributes:
        loss: The weighted sum of the losses, a scalar.
        terms: Name -> unweighted loss, detached.
        pooled: Role (student, teacher) -> pooled features `[B, D]` of this rank, detached.
        reports: Name of the loss -> its metrics function.
        trace: The graph of the terms, if requested.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    pooled: dict[str, Tensor]
    reports: dict[str, Metrics]
    trace: Trace | None

    def detached(self) -> DistillationOutput:
        """The same output without the graph."""
        return self._replace(loss=self.loss.detach(), trace=None)

    def scalars(self) -> dict[str, Tensor]:
        """The objective as `loss`, and its terms as `loss/NAME`."""
        return {"loss": self.loss.detach(), **{f"loss/{name}": value for name, value in self.terms.items()}}

    def metrics(self) -> dict[str, Tensor]:
        """The metrics of the losses, and effective rank and spread of the features. Call it on all ranks."""
        own = {f"{name}/{key}": value for name, report in self.reports.items() for key, value in report().items()}
        pooled = {role: gather(x) for role, x in self.pooled.items()}
        ranks = {f"{role}/effective_rank": effective_rank(x) for role, x in pooled.items()}
        return own | ranks | {f"{role}/std": relative_std(x) for role, x in pooled.items()}


class Distillation(nn.Module):
    """Teacher, student and losses. `model(batch)` returns a `DistillationOutput`.

    Args:
        teacher: The frozen teacher; None for supervised training.
        student: The student.
        losses: Name -> loss.
        weights: Name -> weight.
        micro_batch: Number of samples that the networks process at once (`pipeline.models.gradient_cache`); None means
            all.
        pair_filter: Finds mismatched pairs, which losses that need the teacher then ignore; None uses all pairs.
    """

    def __init__(
        self,
        teacher: Network | Joint | CachedTeacher | None,
        student: Network | Joint,
        losses: Mapping[str, Loss],
        weights: Mapping[str, float],
        micro_batch: int | None = None,
        pair_filter: PairFilter | None = None,
    ) -> None:
        super().__init__()
        self.micro_batch, self.pair_filter = micro_batch, pair_filter
        self.teacher = teacher.requires_grad_(False) if teacher is not None else None
        self.student = student
        self.losses = nn.ModuleDict({_module_name(name): loss for name, loss in losses.items()})
        self.names = {_module_name(name): name for name in losses}
        self.weights = dict(weights)
        self.lowered: Mapping[Part, float] = {}  # factors of the collapse guard, 0 to 1
        self.needs_maps = any(loss.needs_maps for loss in losses.values())
        self.train()

    def train(self, mode: bool = True) -> Distillation:
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(
        self, batch: Batch, traced: bool = False, shares: Mapping[str, float] | None = None
    ) -> DistillationOutput:
        """Compute the objective of a batch.

        Args:
            batch: The samples of this rank.
            traced: Whether the output has a `trace`.
            shares: Loss -> factor, if `batch` is a part of a batch; None if it is a whole batch.
        """
        student = self.features(self.student, batch["student"])
        if traced:
            student = traceable(student)
        teacher = self.teach(batch)
        batch = self._without_mismatched(student, teacher, batch)
        # Networks may use half precision; losses never do.
        with torch.autocast(student.pooled.device.type, enabled=False):
            outputs = {
                self.names[module]: self._scaled(self.names[module], term(loss, student, teacher, batch), shares)
                for module, loss in cast(Mapping[str, Loss], self.losses).items()
            }
        sides = {"student": student} | ({} if teacher is None else {"teacher": teacher})
        return DistillationOutput(
            torch.stack([self.weights[name] * output.loss for name, output in outputs.items()]).sum(),
            {name: output.loss.detach() for name, output in outputs.items()},
            {role: features.pooled.detach() for role, features in sides.items()},
            {name: output.metrics for name, output in outputs.items()}
            | ({} if self.pair_filter is None else {"pairs": self.pair_filter.metrics}),
            self._trace(student, outputs) if traced else None,
        )

    def _without_mismatched(self, student: Features, teacher: Features | None, batch: Batch) -> Batch:
        """The batch in which mismatched pairs count as unpaired, so that losses that need the teacher ignore them."""
        if self.pair_filter is None or teacher is None:
            return batch
        paired = batch["paired"].to(student.pooled.device) if "paired" in batch else None
        matches = self.pair_filter(student, teacher, batch, paired)
        return batch | {"paired": matches if paired is None else matches & paired}

    def _scaled(self, name: str, output: LossOutput, shares: Mapping[str, float] | None) -> LossOutput:
        """The output, scaled by the factors of the collapse guard and, for a part of a batch, by its share."""
        output = self._lower(name, output)
        if shares is None:
            return output
        parts = {part: shares[name] * value for part, value in output.parts.items()}
        return LossOutput(shares[name] * output.loss, output.metrics, parts)

    def _lower(self, name: str, output: LossOutput) -> LossOutput:
        """The output with its parts multiplied by the factors of the collapse guard."""
        if not any((name, part) in self.lowered for part in output.parts):
            return output
        parts = {part: self.lowered.get((name, part), 1.0) * value for part, value in output.parts.items()}
        return LossOutput.sum_of(parts, output.metrics)

    def _trace(self, student: Features, outputs: Mapping[str, LossOutput]) -> Trace:
        weighted = {
            (name, part): self.weights[name] * value
            for name, output in outputs.items()
            for part, value in (output.parts or {"weight": output.loss}).items()
        }
        return Trace(student, weighted, getattr(self.student, "head", None), single_use(self.losses))

    def teach(self, batch: Batch) -> Features | None:
        """The teacher's features of a batch, without gradient. If the batch contains them, they are not computed."""
        if self.teacher is None:
            return None
        if isinstance(batch["teacher"], Features):
            return batch["teacher"]
        if isinstance(self.teacher, CachedTeacher):
            return full_features(self.teacher(batch["teacher"]))
        with torch.no_grad():
            return self.features(self.teacher, batch["teacher"])

    def features(self, network: nn.Module, x: Any) -> Features:
        """The features of a network as the losses read them: in full precision, and maps only if a loss needs them."""
        features: Features = (
            network(x) if self.micro_batch is None else in_parts(network, x, self.micro_batch, self.needs_maps)
        )
        return full_features(features if self.needs_maps else Features(features.pooled, logits=features.logits))

    @property
    def views(self) -> dict[str, ViewSpec]:
        """Role -> the input that is read from a sample. A cached teacher reads nothing."""
        seen = self.teacher is not None and not isinstance(self.teacher, CachedTeacher)
        teacher: dict[str, ViewSpec] = {"teacher": cast(Network | Joint, self.teacher).view} if seen else {}
        return teacher | {"student": self.student.view}

    @property
    def cache(self) -> Cache | None:
        """The cache of the teacher's features, or None."""
        return self.teacher.cache if isinstance(self.teacher, CachedTeacher) else None

    def teacher_identity(self) -> dict[str, str] | None:
        """Hash of the teacher's weights, and its `sight`, whether or not it is cached. None without a teacher."""
        if self.teacher is None:
            return None
        if self.cache is not None:
            return self.cache.fingerprint.model_dump(include={"weights", "sight"})
        return {"weights": digest(self.teacher), "sight": sight(cast(Network | Joint, self.teacher))}

    def trainable_state(self) -> dict[str, Tensor]:
        """The state that training changes: everything except the frozen teacher."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("teacher.")}

    def compile_parts(self, device: torch.device) -> None:
        """Compile student and teacher in place, which keeps the names of their weights, and the transport iterations.

        The latter are not compiled for CPUs, where another implementation is faster. Other parts of the losses
        communicate between ranks and are not compiled.

        Args:
            device: The device of the model.
        """
        for network in (self.student, self.teacher):
            if isinstance(network, (Network, Joint)):
                network.compile()
        for loss in self.losses.modules():
            if isinstance(loss, (LocalTransport, PositionTransport)):
                loss.compiled = device.type != "cpu"

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Load a state that `trainable_state` returned.

        Raises:
            RuntimeError: The state belongs to another student or other losses, as in `load_state_dict`.
        """
        teacher = {k: v for k, v in self.state_dict().items() if k.startswith("teacher.")}
        self.load_state_dict(dict(state) | teacher)


def full_features(features: Features) -> Features:
    """The features in full precision.

    Args:
        features: Features in any precision.
    """
    logits = features.logits
    return Features(
        full_precision(features.pooled),
        [full_precision(x) for x in features.maps],
        None if logits is None else full_precision(logits),
    )


def _module_name(name: str) -> str:
    return re.sub(r"\W", "_", name)
