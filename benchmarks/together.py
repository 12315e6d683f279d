"""Trains several students of one teacher in parallel, with the same result as `wcord train` for each of them.

Common work is done only once: each batch is read, decoded, augmented and run through the teacher once. A comparison of
ten losses therefore costs little more than the forward and backward passes of the ten students.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from losses.base import Features
from pipeline.common.files import write_atomic
from pipeline.config import Config
from pipeline.data.augmentation import Augmentation
from pipeline.data.source import OpenDataset, open_split
from pipeline.data.stream import EvalStream, TrainStream, loader
from pipeline.evaluate.evaluate_run import Results
from pipeline.evaluate.probes import accuracy, classify_frozen
from pipeline.models.build import build_model, build_teacher
from pipeline.models.distillation import Distillation, DistillationOutput
from pipeline.models.network import Joint, Network, save_network
from pipeline.runs.folder import write_config
from pipeline.train.guard import Guard
from pipeline.train.list_pairs import list_pairs
from pipeline.train.optimizer import build_optimizer
from pipeline.train.resume import assert_finite_weights
from pipeline.train.schedule import Schedule

CPU = torch.device("cpu")


class Known(nn.Module):
    """A teacher that returns precomputed features of the batch."""

    def forward(self, features: Features) -> Features:
        return features


Measure = Callable[[Sequence[Network | Joint], Config], list[Results]]


def train_together(configs: Sequence[Config], measure: Measure | None = None) -> None:
    """Train and evaluate configs that differ only in losses, run, `data.pairs`, and whether there is a teacher.

    Each run folder gets `results.json`, config and student. Finished runs are skipped. There are no checkpoints: an
    interrupted call starts again.

    Args:
        configs: The configs.
        measure: Computes the results of the students; their effective rank is added. By default, accuracies of the
            heads and on frozen features.
    """
    torch.set_num_threads(1)
    configs = [config for config in configs if not (Path(config.run) / "results.json").exists()]
    if not configs:
        return
    taught = next((config for config in configs if config.teacher), configs[0])
    teacher = build_teacher(taught)
    models = [build_model(config) for config in configs]
    optimizers = [build_optimizer(model, config) for model, config in zip(models, configs, strict=True)]
    views = {"student": models[0].student.view} | ({"teacher": teacher.view} if teacher else {})
    for model in models:
        if model.teacher is not None:
            model.teacher = Known()  # type: ignore[assignment]
    data, dataset = taught.data, OpenDataset.from_config(taught)
    source, augmentation = dataset.split("train", data.label_fraction, taught.seed), Augmentation.from_config(taught)
    stream = TrainStream(source, views, augmentation, batch=data.batch_size, shuffle=data.shuffle)
    schedules = [Schedule(config.train, stream.steps_per_epoch, config.losses) for config in configs]
    guards = [
        Guard(model, config, schedule.steps) for model, config, schedule in zip(models, configs, schedules, strict=True)
    ]
    outputs: list[DistillationOutput] = []
    for step, batch in zip(range(1, schedules[0].steps + 1), loader(stream, data.workers, CPU), strict=False):
        if teacher is not None:
            with torch.no_grad():
                batch["teacher"] = teacher.eval()(batch["teacher"])
        outputs = [
            _step(model, optimizer, config, batch, step, schedule, guard)
            for model, optimizer, config, schedule, guard in zip(
                models, optimizers, configs, schedules, guards, strict=True
            )
        ]
    for model, config in zip(models, configs, strict=True):
        assert_finite_weights(model, schedules[0].steps)
        write_config(config, Path(config.run), "data")
        save_network(model.student, Path(config.run) / "student")
        if model.pair_filter is not None:
            list_pairs(Path(config.run), model.pair_filter, source)
    ranks = [float(output.metrics()["student/effective_rank"]) for output in outputs]
    measured = (measure or probed)([model.student for model in models], taught)
    for config, rank, results in zip(configs, ranks, measured, strict=True):
        results["student/effective_rank"] = rank
        write_atomic(Path(config.run) / "results.json", json.dumps(results, indent=1).encode())


def _step(
    model: Distillation,
    optimizer: torch.optim.Optimizer,
    config: Config,
    batch: dict[str, Any],
    step: int,
    schedule: Schedule,
    guard: Guard,
) -> DistillationOutput:
    torch.manual_seed(hash((config.seed, step, 0)))
    for group in optimizer.param_groups:
        group["lr"] = schedule.learning_rate(step)
    guard.begin(schedule.weights(step))
    output: DistillationOutput = model(batch, traced=guard.is_due(step))
    for warning in guard.check(step, batch, output):
        print(f"{config.run}: warning: {warning}", flush=True)
    loss, output = output.loss, output.detached()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), config.train.clip or math.inf)
    optimizer.step()
    optimizer.zero_grad()
    return output


def probed(students: Sequence[Network | Joint], config: Config) -> list[Results]:
    """Accuracy of the heads of the students, and of classifiers on their frozen features."""
    pooled, predicted, label = _run_split(students, config, config.evaluation.split)
    found = [{f"student/{k}": v for k, v in accuracy(one, label).items()} for one in predicted]
    seen, _, seen_label = _run_split(students, config, "train")
    for results, train, test in zip(found, seen, pooled, strict=True):
        scores = classify_frozen(train, seen_label, test, label, config.evaluation.neighbours)
        results.update({f"student/{k}": v for k, v in scores.items()})
    return found


@torch.no_grad()
def _run_split(
    students: Sequence[Network | Joint], config: Config, split: str
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Features and predictions of every student and the labels of a whole split."""
    source = open_split(config.data.address, split, config.data.label)
    pooled: list[list[Tensor]] = [[] for _ in students]
    predicted: list[list[Tensor]] = [[] for _ in students]
    label: list[Tensor] = []
    for batch in loader(EvalStream(source, {"student": students[0].view}, batch=256), config.data.workers, CPU):
        label.append(batch["label"])
        for student, features, classes in zip(students, pooled, predicted, strict=True):
            out = student.eval()(batch["student"])
            assert out.logits is not None
            features.append(out.pooled)
            classes.append(out.logits.argmax(1))
    return [torch.cat(x).numpy() for x in pooled], [torch.cat(x).numpy() for x in predicted], torch.cat(label).numpy()
