"""Several students of one teacher trained side by side, as `wcord train` would train each of them alone.

They share what is the same for all: every batch is read, decoded and augmented once, and seen by the teacher once. So
a comparison of ten losses costs little more than their ten students' own passes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from losses.base import Features
from pipeline.config import Config
from pipeline.evaluate import Results
from pipeline.model import Distillation, build_model, build_teacher
from pipeline.network import Joint, Network, save_network
from pipeline.probes import accuracy, classify_frozen
from pipeline.resume import assert_finite_weights
from pipeline.run_folder import write_config
from pipeline.schedule import Schedule
from pipeline.shards import write_atomic
from pipeline.source import open_split
from pipeline.stream import EvalStream, TrainStream, loader
from pipeline.train import build_optimizer

CPU = torch.device("cpu")


class Known(nn.Module):
    """A teacher whose features of the batch are known already."""

    def forward(self, features: Features) -> Features:
        return features


def train_together(configs: Sequence[Config], probe: bool = True) -> None:
    """Train configs that differ in nothing but losses, run and whether there is a teacher, and measure each.

    Each run folder gets config, student and `results.json` (the student's accuracies, with `probe` also those on
    frozen features, and its effective rank); runs that have results are left out. No checkpoints: an interrupted
    call starts again.
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
    data, seed = taught.data, taught.seed
    stream = TrainStream(
        open_split(data.shards, "train", data.label, data.labels, seed),
        views,
        batch=data.batch_size,
        seed=seed,
        shuffle=data.shuffle,
        crop=data.crop,
        flip=data.flip,
        pad=data.pad,
    )
    schedules = [Schedule(config.train, stream.steps_per_epoch) for config in configs]
    for step, batch in zip(range(1, schedules[0].steps + 1), loader(stream, data.workers, CPU), strict=False):
        if teacher is not None:
            with torch.no_grad():
                batch["teacher"] = teacher.eval()(batch["teacher"])
        for model, optimizer, config, schedule in zip(models, optimizers, configs, schedules, strict=True):
            _step(model, optimizer, config, batch, step, schedule.learning_rate(step))
    for model, config in zip(models, configs, strict=True):
        assert_finite_weights(model, schedules[0].steps)
        write_config(config, Path(config.run))
        save_network(model.student, Path(config.run) / "student")
    ranks = [float(model.metrics()["student/effective_rank"]) for model in models]
    measured = _measure([model.student for model in models], taught, probe)
    for config, rank, results in zip(configs, ranks, measured, strict=True):
        results["student/effective_rank"] = rank
        write_atomic(Path(config.run) / "results.json", json.dumps(results, indent=1).encode())


def _step(
    model: Distillation,
    optimizer: torch.optim.Optimizer,
    config: Config,
    batch: Mapping[str, Tensor],
    step: int,
    rate: float,
) -> None:
    torch.manual_seed(hash((config.seed, step, 0)))
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss, _ = model(batch)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), config.train.clip or math.inf)
    optimizer.step()
    optimizer.zero_grad()


def _measure(students: Sequence[Network | Joint], config: Config, probe: bool) -> list[Results]:
    pooled, predicted, label = _embed(students, config, config.evaluation.split)
    found = [{f"student/{k}": v for k, v in accuracy(one, label).items()} for one in predicted]
    if probe:
        seen, _, seen_label = _embed(students, config, "train")
        for results, train, test in zip(found, seen, pooled, strict=True):
            scores = classify_frozen(train, seen_label, test, label, config.evaluation.neighbours)
            results.update({f"student/{k}": v for k, v in scores.items()})
    return found


@torch.no_grad()
def _embed(
    students: Sequence[Network | Joint], config: Config, split: str
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Features and predictions of every student, and the labels, of a whole split."""
    source = open_split(config.data.shards, split, config.data.label)
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
