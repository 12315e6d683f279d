"""Metrics of the suite for students that were trained in parallel: top-1, linear probe, or cross-modal recall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.config import Config
from pipeline.data.source import open_split
from pipeline.data.stream import EvalStream, loader
from pipeline.evaluate.evaluate_run import Results
from pipeline.evaluate.probes import accuracy, classify_frozen
from pipeline.evaluate.retrieval import retrieval
from pipeline.evaluate.shared_space import Space
from pipeline.models.build import build_teacher
from pipeline.models.network import Joint, Network

SPLITS = "val", "test"


@dataclass(frozen=True)
class Seen:
    """Outputs of the networks on a split.

    Attributes:
        teacher: Features of the teacher.
        features: Features of each student.
        predicted: Predictions of each student.
        label: Class index.
    """

    teacher: np.ndarray | None
    features: list[np.ndarray]
    predicted: list[np.ndarray]
    label: np.ndarray


def top1(students: Sequence[Network | Joint], config: Config) -> list[Results]:
    """Accuracy of the head of each student on the splits."""
    found = {split: run_split(students, None, config, split) for split in SPLITS}
    return [
        {split: accuracy(seen.predicted[number], seen.label)["top1"] for split, seen in found.items()}
        for number in range(len(students))
    ]


def probe(students: Sequence[Network | Joint], config: Config) -> list[Results]:
    """Accuracy of a linear probe on the frozen features, with all training labels, as in `wcord evaluate`."""
    train, *others = (run_split(students, None, config, split) for split in ("train", *SPLITS))
    return [
        {
            split: classify_frozen(features, train.label, seen.features[number], seen.label, neighbours=10)["probe"]
            for split, seen in zip(SPLITS, others, strict=True)
        }
        for number, features in enumerate(train.features)
    ]


def recall(students: Sequence[Network | Joint], config: Config) -> list[Results]:
    """R@10 for retrieving the teacher's features of the same sample among a whole split, as in `wcord evaluate`."""
    teacher = build_teacher(config)
    train, *others = (run_split(students, teacher, config, split) for split in ("train", *SPLITS))
    found: list[Results] = []
    for number, features in enumerate(train.features):
        assert train.teacher is not None
        space = Space.fit(features, train.teacher)
        results: Results = {}
        for split, seen in zip(SPLITS, others, strict=True):
            assert seen.teacher is not None
            queries, gallery = space.of_student(seen.features[number]), space.of_teacher(seen.teacher)
            results[split] = retrieval(queries, gallery)["R@10"]
        found.append(results)
    return found


@torch.no_grad()
def run_split(students: Sequence[Network | Joint], teacher: Network | Joint | None, config: Config, split: str) -> Seen:
    """Run a whole split through all networks. It is decoded only once, since all students have the same view."""
    source = open_split(config.data.address, split, config.data.label)
    views = {"student": students[0].view} | ({"teacher": teacher.view} if teacher else {})
    taught: list[Tensor] = []
    features: list[list[Tensor]] = [[] for _ in students]
    predicted: list[list[Tensor]] = [[] for _ in students]
    label: list[Tensor] = []
    for batch in loader(EvalStream(source, views, batch=256), config.data.workers, torch.device("cpu")):
        label.append(batch["label"])
        if teacher:
            taught.append(teacher.eval()(batch["teacher"]).pooled)
        for student, own, classes in zip(students, features, predicted, strict=True):
            out = student.eval()(batch["student"])
            own.append(out.pooled)
            if out.logits is not None:
                classes.append(out.logits.argmax(1))
    return Seen(
        torch.cat(taught).numpy() if taught else None,
        [torch.cat(own).numpy() for own in features],
        [torch.cat(classes).numpy() for classes in predicted if classes],
        torch.cat(label).numpy(),
    )
