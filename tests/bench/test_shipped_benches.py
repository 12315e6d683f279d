"""The shipped benchmarks load, their networks and losses fit each other, and they say what was published."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import torch

from losses import Dims
from losses import get as get_loss
from modalities import RGB
from pipeline import config as configs
from pipeline.bench import settings as benches
from pipeline.config import Config
from pipeline.config.components import TERM
from pipeline.config.shipped import SHIPPED

BENCH = SHIPPED / "bench"
CLASSES = {"cifar100": 100, "imagenet": 1000}
PUBLISHED_WEIGHTS = {
    "fitnet": 100,
    "at": 1000,
    "sp": 3000,
    "cc": 0.02,
    "vid": 1,
    "rkd": 1,
    "pkt": 30000,
    "nst": 50,
    "crd": 0.8,
}


def resolved(experiment: Any, **more: Any) -> Config:
    settings = {**experiment.set, **more}
    return configs.load(BENCH / experiment.config, [f"{key}={json.dumps(value)}" for key, value in settings.items()])


@cache
def dims(encoder: str, classes: int) -> Dims:
    """Of a student's `encoder`, as JSON."""
    with torch.device("meta"):
        built = RGB(jitter=0.0).encoder(json.loads(encoder))
        return Dims(built.dim, built.map_channels, classes, sizes=built.map_sizes())


def dims_of(config: Config, classes: int) -> Dims:
    return dims(json.dumps(config.student.encoder), classes)


@pytest.mark.parametrize("name", [pytest.param("cifar100", marks=pytest.mark.slow), "imagenet"])
def test_every_pair_fits_every_method(name: str) -> None:
    bench = benches.load(BENCH / f"{name}.yaml")
    teachers = {teacher: dims_of(resolved(own), CLASSES[name]) for teacher, own in bench.teachers.items()}
    for pair in bench.pairs.values():
        student = dims_of(resolved(pair), CLASSES[name])
        for losses in bench.methods.values():
            for loss, settings in losses.items():
                own = {key: value for key, value in (settings or {}).items() if key not in TERM}
                kind: Any = get_loss(loss)
                if kind.needs_index:
                    own["samples"] = 50
                kind(student, teachers[str(pair.teacher)], **own)


@pytest.mark.parametrize("name", ["cifar100", "imagenet"])
def test_every_method_is_a_valid_config(name: str) -> None:
    bench = benches.load(BENCH / f"{name}.yaml")
    pair = next(iter(bench.pairs.values()))
    for losses in bench.methods.values():
        resolved(pair, teacher={"run": "somewhere"}, losses=losses)


def test_the_cifar_bench_has_the_pairs_of_both_tables() -> None:
    bench = benches.load(BENCH / "cifar100.yaml")
    pairs = {(str(p.teacher), p.set["student.encoder.name"]): p for p in bench.pairs.values()}
    assert len(pairs) == len(bench.pairs) == 13
    small = {"MobileNetV2", "ShuffleV1", "ShuffleV2"}
    for (teacher, student), pair in pairs.items():
        assert f"{teacher} to {student}" in bench.pairs
        assert bench.teachers[teacher].set["student.encoder.name"] == teacher
        assert resolved(pair).train.learning_rate == (0.01 if student in small else 0.05)
        assert resolved(bench.teachers[teacher]).train.learning_rate == 0.05


def test_the_cifar_bench_is_of_the_published_protocol() -> None:
    bench = benches.load(BENCH / "cifar100.yaml")
    config = resolved(next(iter(bench.pairs.values())))
    train, data = config.train, config.data
    assert (train.optimizer, train.weight_decay, train.decay_vectors, train.warmup) == ("sgd", 5e-4, True, 0)
    assert (train.epochs, train.schedule, train.milestones, train.clip) == (240, "step", [150, 180, 210], None)
    assert (data.batch_size, data.pad, data.flip, data.crop) == (64, (4, 32), True, (1.0, 1.0))
    assert config.student.encoder["mean"] == (0.5071, 0.4867, 0.4408)  # type: ignore[call-overload]
    assert config.student.encoder["std"] == (0.2675, 0.2565, 0.2761)  # type: ignore[call-overload]
    assert config.student.modality == {"name": "rgb", "jitter": 0}
    for loss, weight in PUBLISHED_WEIGHTS.items():
        assert (bench.methods[loss][loss] or {})["weight"] == weight
    assert bench.methods["dkd"]["dkd"]["schedule"] == {"warmup": 20}  # type: ignore[index]
    for method, loss in ("wkd-l", "wkd_logit"), ("wkd-f", "wkd_feature"), ("wkd", "wkd_logit"), ("wkd", "wkd_feature"):
        assert (bench.methods[method][loss] or {})["schedule"] == {"decay": "cosine", "from": 150}
    assert bench.methods["kd"] == {"cross_entropy": {"weight": 0.1}, "kd": {"weight": 0.9, "temperature": 4}}
