"""Validation without labels: losses on held-out samples, and retrieval of the teacher's features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from losses.base import Loss
from pipeline.common.errors import UserError
from pipeline.data.fixed_stream import FixedStream
from pipeline.data.source import Source
from pipeline.data.stream import loader
from pipeline.data.views import Batch
from pipeline.evaluate.retrieval import DEPTHS, retrieval
from pipeline.evaluate.shared_space import Space
from pipeline.models.network import Joint, Network
from pipeline.models.unpaired import term
from pipeline.train.state import Training

MOST = 1024
"""Maximum number of held-out samples, and of training samples for the shared space."""


@torch.no_grad()
def held_out_loss(training: Training, student: Network | Joint) -> dict[str, float]:
    """Compute the losses on held-out samples, in batches of `data.batch_size`. Call it on all ranks.

    Args:
        training: The run.
        student: The student.

    Returns:
        `loss`, the sum of the losses with the weights of the config, without their schedules and reductions by the
        collapse guard; and each loss as `loss/NAME`. Losses with a bank of training samples are left out.

    Raises:
        UserError: A loss changes its state, although it is not in training mode.
    """
    assert training.held_out is not None
    model, accelerator, held_out = training.distillation, training.accelerator, training.held_out
    losses = {name: cast(Loss, model.losses[key]) for key, name in model.names.items() if name in held_out.terms}
    before = _buffers(losses)
    sums = {name: torch.zeros((), device=accelerator.device) for name in losses}
    count = 0
    model.losses.eval()
    for batch in _batches(training, student, held_out.source):
        del batch["index"]  # of another split than that of banks and queues
        with accelerator.autocast():
            own = model.features(student, batch["student"])
            other = model.features(held_out.teacher, batch["teacher"]) if held_out.teacher is not None else None
        for name, loss in losses.items():
            sums[name] += term(loss, own, other, batch).loss
        count += 1
    model.losses.train()
    if changed := sorted(name for name, state in _buffers(losses).items() if state != before[name]):
        raise UserError(
            f"losses.{changed[0]}: changes its buffers in validation. Change them only `if self.training`, or set "
            "evaluation.monitor to another metric."
        )
    means = {name: float(accelerator.reduce(value / count, "mean")) for name, value in sums.items()}
    weights = {name: float(training.config.losses[name].get("weight", 1.0)) for name in means}
    total = sum(weights[name] * value for name, value in means.items())
    return {"loss": total, **{f"loss/{name}": value for name, value in means.items()}}


@torch.no_grad()
def held_out_retrieval(training: Training, student: Network | Joint) -> dict[str, float]:
    """Measure how well held-out student features retrieve the teacher features of their pairs. Call it on all ranks.

    As in `wcord evaluate`, the student's features are mapped to the teacher's by ridge regression, which is fitted on
    training samples.

    Args:
        training: The run.
        student: The student.

    Returns:
        `R@1`, `R@5` and `R@10` in [0, 1], those above the number of samples left out, and `median_rank`.
    """
    assert training.held_out is not None
    seen, unseen = (_embed(training, student, s) for s in (training.held_out.training, training.held_out.source))
    found: list[dict[str, float] | None] = [None]
    if training.accelerator.is_main_process:
        space = Space.fit(seen["student"], seen["teacher"])
        scores = retrieval(space.of_student(unseen["student"]), space.of_teacher(unseen["teacher"]))
        trivial = {f"R@{k}" for k in DEPTHS if k >= len(unseen["student"])}
        found = [{name: value for name, value in scores.items() if name not in trivial}]
    return cast(dict[str, float], broadcast_object_list(found)[0])


def _embed(training: Training, student: Network | Joint, source: Source) -> dict[str, np.ndarray]:
    """Role -> features `[N, D]`, fp32, of some samples of a split, in the order of the split."""
    model, accelerator, held_out = training.distillation, training.accelerator, training.held_out
    assert held_out is not None
    assert held_out.teacher is not None
    parts: dict[str, list[Tensor]] = {"index": [], "student": [], "teacher": []}
    for batch in _batches(training, student, source):
        with accelerator.autocast():
            own, other = model.features(student, batch["student"]), model.features(held_out.teacher, batch["teacher"])
        for role, x in {"index": batch["index"], "student": own.pooled, "teacher": other.pooled}.items():
            parts[role].append(accelerator.gather(x).cpu())
    found = {role: torch.cat(part).numpy() for role, part in parts.items()}
    _, once = np.unique(found.pop("index"), return_index=True)
    return {role: x[once] for role, x in found.items()}


def _batches(training: Training, student: Network | Joint, source: Source) -> Iterator[Batch]:
    """The batches of this rank, with the student in evaluation mode until the last one."""
    config, accelerator, held_out = training.config, training.accelerator, training.held_out
    assert held_out is not None
    views = {"student": student.view} | ({"teacher": held_out.teacher.view} if held_out.teacher is not None else {})
    ranks, rank = accelerator.num_processes, accelerator.process_index
    stream = FixedStream(source, views, batch=config.data.batch_size, most=MOST, ranks=ranks, rank=rank)
    student.eval()
    yield from loader(stream, config.data.workers, accelerator.device, timeout=config.train.timeout)
    student.train()


def _buffers(losses: Mapping[str, Loss]) -> dict[str, list[tuple[int, int]]]:
    """Identity and version of the buffers of each loss, which show whether they have been changed."""
    return {name: [(id(b), b._version) for b in loss.buffers()] for name, loss in losses.items()}
