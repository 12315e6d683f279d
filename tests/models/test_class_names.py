"""A teacher that knows classes by their names: distillation without a head and without labels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from two_towers import two_towers

from pipeline.common.errors import UserError
from pipeline.config import load
from pipeline.data.manifest import load_dataset
from pipeline.evaluate import evaluate
from pipeline.models.build import build_model, build_teacher
from pipeline.models.network import Network, load_network
from pipeline.train import train
from pipeline.train.cache_teacher import cache

KD = "  kd: {temperature: 1.0}"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_towers(tmp_path_factory.mktemp("models") / "clip")


def teacher(clip: Path, zero_shot: str = "{}", more: str = "") -> str:
    encoder = f"{{name: transformers, model: {clip}}}"
    return f"teacher: {{modality: rgb, encoder: {encoder}, zero_shot: {zero_shot}{more}}}"


@pytest.fixture
def no_classes(tmp_path: Path, shapes: Path) -> Path:
    """The same data of somebody who labelled nothing."""
    folder = tmp_path / "unlabelled"
    shutil.copytree(shapes, folder)
    manifest = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(manifest | {"classes": {}}))
    return folder


@pytest.mark.slow
def test_kd_alone_trains_a_student_that_agrees_with_it(make_config, clip: Path) -> None:
    path = make_config(teacher=teacher(clip), losses=KD)
    run = train(load(path, ["train.steps=30", "data.crop=[1.0, 1.0]", "data.flip=false"]))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss/kd"] for row in rows if "loss/kd" in row]
    assert losses[-1] < 0.5 * losses[0]
    results = evaluate(run)
    assert {"teacher/top1", "student/top1"} <= set(results)


def test_classes_are_the_data_sets_or_else_the_names(make_config, clip: Path, no_classes: Path) -> None:
    named = build_teacher(load(make_config(teacher=teacher(clip), losses=KD)))
    assert named is not None
    assert named.classes == ["disc", "square", "cross"]
    config = load(make_config(teacher=teacher(clip, "{names: [disc, cross]}"), losses=KD, shards=no_classes))
    student = build_model(config).student
    assert student.classes == ["disc", "cross"]
    run = train(config)
    found = load_network(run / "student")
    assert isinstance(found, Network)
    assert found.classes == ["disc", "cross"]
    evaluate(run)


def test_sentence_and_names_decide(make_config, clip: Path) -> None:
    def logits(zero_shot: str) -> torch.Tensor:
        network = build_teacher(load(make_config(teacher=teacher(clip, zero_shot), losses=KD)))
        assert network is not None
        found: torch.Tensor = network.eval()(torch.full((1, 3, 32, 32), 90, dtype=torch.uint8)).logits
        return found

    plain = logits("{}")
    torch.testing.assert_close(plain, logits("{names: [disc, square, cross]}"))
    torch.testing.assert_close(plain.flip(1), logits("{names: [cross, square, disc]}"))
    assert not torch.allclose(plain, logits('{template: "{} photo of a"}'))


def test_its_probabilities_are_cached(make_config, clip: Path, tmp_path: Path, shapes: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(shapes, shards)
    path = make_config(teacher=teacher(clip, more=", cache: clip"), losses=KD, shards=shards)
    cache(load(path))
    train(load(path))
    other = load(path, ['teacher.zero_shot.template="{} of a photo"'])
    with pytest.raises(UserError, match="the teacher's weights"):
        build_model(other)


@pytest.mark.parametrize(
    ("zero_shot", "words"),
    [("{template: a photo}", "teacher.zero_shot.template: must contain {} once"),
     ("{names: [disc, disc]}", "teacher.zero_shot.names: must be distinct"),
     ("{templates: x}", "teacher.zero_shot.templates: unknown key; did you mean template"),
     ("{names: [disc, cross]}", "teacher.zero_shot.names: has 2 names, but the data has 3 classes")],
)  # fmt: skip
def test_faults_are_told(make_config, clip: Path, zero_shot: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_model(load(make_config(teacher=teacher(clip, zero_shot), losses=KD)))


def test_other_teachers_cannot(make_config, clip: Path, no_classes: Path) -> None:
    with pytest.raises(UserError, match="zero_shot requires a single pretrained encoder"):
        load(make_config(teacher="teacher: {run: runs/a, zero_shot: {}}", losses=KD))
    small = "teacher: {modality: rgb, encoder: cnn5, zero_shot: {}}"
    with pytest.raises(UserError, match=r"teacher\.zero_shot: requires `encoder: \{name: transformers"):
        build_model(load(make_config(teacher=small, losses=KD)))
    random = teacher(clip).replace("model:", "weights: random, model:")
    with pytest.raises(UserError, match="requires pretrained weights"):
        build_model(load(make_config(teacher=random, losses=KD)))
    with pytest.raises(UserError, match="the dataset has no classes; list the class names"):
        build_model(load(make_config(teacher=teacher(clip), losses=KD, shards=no_classes)))
    assert load_dataset(no_classes).classes == {}
