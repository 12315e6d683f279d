"""The collapse guard: detects a collapse during training, reports its cause, and reduces the weight of that term.

If the gradient of one term is far larger than that of the task loss, the task loss has no influence, because gradients
are clipped by norm and Adam divides by their size. The features then stop improving, and the classifier predicts one
class. Relational losses cause this if pairs are mismatched: they depend only on differences from the batch mean, and
their gradient grows as these shrink. The effective rank of such features is high and does not reveal the collapse;
predictions, spread and the gap between positive and negative similarities do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from losses.gather import ranks, sum_over_ranks
from pipeline.config.settings import Config
from pipeline.data.views import Batch
from pipeline.models.distillation import Distillation, DistillationOutput
from pipeline.models.pulls import Part, Trace
from pipeline.runs.collapse import LABELLED, LABELS, PREDICTED, Sign, cure, setting, signs

EVERY, DENSE = 25, 1000
"""Steps between checks up to step DENSE; afterwards, the interval is four times as long."""
LATEST = 500
"""Checks count after the warm-up and a fifth of the training, and from this step on in any case."""
IN_A_ROW = 3
"""Number of consecutive checks that detect a collapse before a term is reduced, and before each further reduction.

With relations that the student can fit, the signs of collapse disappear earlier.
"""
BY, LEAST = 0.1, 1e-3
"""The factor per reduction, and the minimum of the product of all factors.

The factor is smaller if the term's gradient would otherwise still exceed this fraction of the task's gradient.
"""


class Driver(NamedTuple):
    """The cause of a sign of collapse.

    Attributes:
        sign: The sign.
        part: The part of the objective that causes it.
        share: Its fraction of the gradient norms of all parts.
        factor: The factor to reduce it by.
    """

    sign: Sign
    part: Part
    share: float
    factor: float


class Guard:
    """The state of the guard in one run, identical on all ranks. With `train.guard: false`, it only warns.

    Args:
        model: The model whose weights it reduces.
        config: Config of the run.
        steps: Number of steps of the training.
    """

    def __init__(self, model: Distillation, config: Config, steps: int) -> None:
        self.model, self.acts, self.losses = model, config.train.guard, config.losses
        self.first = max(config.train.warmup, min(steps // 5, LATEST))
        self.labels = torch.zeros(len(model.student.classes or ()))
        self.factors: dict[Part, float] = {}
        self.row = 0
        self.said: set[str] = set()
        self.seen: dict[str, float] = {}

    def begin(self, weights: Mapping[str, float]) -> None:
        """Set the loss weights of a step in the model, including the guard's reductions."""
        self.model.weights = {name: weight * self.factors.get((name, "weight"), 1) for name, weight in weights.items()}
        self.model.lowered = self.factors

    def is_due(self, step: int) -> bool:
        """Whether a step is checked, which requires a trace."""
        return step % (EVERY if step <= DENSE else 4 * EVERY) == 0

    def check(self, step: int, batch: Batch, output: DistillationOutput) -> list[str]:
        """Check a step after its forward pass and before its backward. Call it on all ranks.

        Most steps have no trace and are not checked.

        Args:
            step: Number of the step.
            batch: The batch.
            output: Output of the forward pass.

        Returns:
            New warnings. Each is returned only once per run.
        """
        if output.trace is None:
            return []
        self._count(batch, output.trace.student.logits)
        found = signs(self._metrics(output), self.losses)
        if step < self.first:  # features are still forming
            found = [sign for sign in found if sign.idle]
        drivers = self._drivers([sign for sign in found if sign.collapse], output.trace)
        self.row = self.row + 1 if drivers else 0
        told = [self._once(sign, cure(sign.loss, self.losses)) for sign in found if sign not in drivers]
        if self.row >= IN_A_ROW:
            told += [self._lower(driver) for driver in {d.part: d for d in reversed(drivers.values())}.values()]
            self.row = 0
        return [text for text in told if text]

    def told(self) -> dict[str, float]:
        """Values for the log: effective class counts, and the factors of reduced parts as `guard/LOSS.KEYWORD`."""
        return self.seen | {f"guard/{loss}.{key}": factor for (loss, key), factor in self.factors.items()}

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint, so that a resumed run behaves like an uninterrupted one."""
        names = ("labels", "factors", "row", "said", "seen")
        return {name: getattr(self, name) for name in names} | {"said": sorted(self.said)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state. It is empty in checkpoints from versions without a guard."""
        for name, value in state.items():
            setattr(self, name, set(value) if name == "said" else value)

    def _count(self, batch: Batch, logits: Tensor | None) -> None:
        """Update the effective number of classes: of the labels in all checks, and of the predictions in this one."""
        classes = len(self.labels)
        if logits is None or not classes:
            return
        label = batch["mask" if logits.ndim == 4 else "label"].to(logits.device)
        counts = [torch.bincount(x[x >= 0].flatten(), minlength=classes) for x in (label, logits.argmax(1))]
        own, predicted = sum_over_ranks(torch.stack(counts)).cpu().float()
        self.labels = self.labels + own
        self.seen = {PREDICTED: _effective(predicted), LABELLED: _effective(self.labels)}

    def _metrics(self, output: DistillationOutput) -> dict[str, float]:
        """The metrics of the step, averaged over ranks, since some losses compute metrics on local samples only."""
        own, device = output.metrics(), output.loss.device
        values = torch.stack([value.detach().float().to(device) for value in own.values()])
        means = sum_over_ranks(values) / ranks()
        return dict(zip(own, means.tolist(), strict=True)) | self.seen | {LABELS: float(self.labels.sum())}

    def _drivers(self, collapses: list[Sign], trace: Trace) -> dict[Sign, Driver]:
        """The cause of each sign of collapse: the part with the largest gradient at the student's features.

        A sign in the projections of a loss is attributed to this loss; a sign in the student, to any loss that uses the
        teacher. Parts whose gradient is smaller than that of the task are not a cause.
        """
        if not collapses:
            return {}
        pulls = trace.pulls()
        tasks = {self.model.names[module] for module, loss in self.model.losses.items() if not loss.needs_teacher}
        task = math.fsum(pull for (name, _), pull in pulls.items() if name in tasks)
        found: dict[Sign, Driver] = {}
        for sign in collapses:
            own = {part: pull for part, pull in pulls.items() if part[0] not in tasks and sign.loss in (None, part[0])}
            part = max(own, key=lambda part: own[part], default=None)
            if part is not None and own[part] > task:
                share = own[part] / math.fsum(pulls.values())
                found[sign] = Driver(sign, part, share, min(BY, BY * task / own[part] or BY))
        return found

    def _lower(self, driver: Driver) -> str:
        """Reduce the part that causes a collapse. Returns a warning the first time."""
        named = setting(driver.part, self.losses)
        advice = (
            f"Most of the gradient of its features comes from {named} ({100 * driver.share:.0f} %). "
            f"{cure(driver.sign.loss, self.losses, driver.part)}"
        )
        if self.acts:
            left = max(self.factors.get(driver.part, 1.0) * driver.factor, LEAST)
            self.factors[driver.part] = left
            advice += f" In this run, it is multiplied by {left:.2g}, or by less if necessary (train.guard)."
        return self._once(driver.sign, advice, driver.part)

    def _once(self, sign: Sign, advice: str, part: Part | None = None) -> str:
        """The warning, or an empty string if this sign or part has already been reported."""
        key = "/".join(part) if part else f"{sign.loss} {sign.kind}"
        if key in self.said:
            return ""
        self.said.add(key)
        return f"{sign.text}. {sign.cure or advice}"


def _effective(counts: Tensor) -> float:
    """`exp(entropy)` of class frequencies: 1 for a single class, K for K equally frequent classes, 0 without labels."""
    if not counts.any():
        return 0.0
    return float(torch.special.entr(counts / counts.sum()).sum().exp())
