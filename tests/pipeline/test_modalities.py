"""Sound and text as students of a photo's teacher, from packed scenes to a report: the same program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline import config as configs
from pipeline.evaluate import evaluate
from pipeline.pack import pack
from pipeline.recipes import tabletop
from pipeline.report import report
from pipeline.train import train


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    pack(tabletop.plan(80), folder, workers=1)
    return folder


@pytest.mark.parametrize(
    ("modality", "encoder"),
    [
        ("{name: audio, seconds: 0.2}", "{name: log_mel_cnn, width: 4}"),
        ("text", "{name: text_transformer, width: 16, depth: 1, heads: 2}"),
        ("[depth, audio]", "[{name: cnn5, width: 4, size: 16}, {name: log_mel_cnn, width: 4}]"),
    ],
)
def test_a_student_of_a_photo_s_teacher(make_config: Any, scenes: Path, modality: str, encoder: str) -> None:
    base = ("data.batch_size=8", "train.steps=3")
    photo = ("student.modality=rgb", "student.encoder={name: cnn5, width: 4, size: 16}")
    teacher = train(configs.load(make_config("teacher", shards=scenes), [*base, *photo]))
    path = make_config("student", f"teacher: {{run: {teacher}}}", "  cross_entropy: {}\n  wcord: {dim: 8}", scenes)
    own = (*base, f"student.modality={modality}", f"student.encoder={encoder}")
    student = train(configs.load(path, own))
    results = evaluate(student)
    assert {"student/top1", "retrieval/student_to_teacher/R@1"} <= results.keys()
    assert report([student]).stat().st_size > 10_000
    again = train(configs.load(path, [*own, f"run={student}_parts", "train.micro_batch=4", "data.workers=1"]))
    assert (again / "student" / "model.safetensors").is_file()
