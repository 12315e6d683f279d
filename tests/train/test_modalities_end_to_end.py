"""Sound, text and points as students of a photo's teacher, from packed scenes to a report: the same program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import call
from foreign_shards import photo, plain_tar
from point_clouds import KINDS, solid, written

from pipeline import config as configs
from pipeline.data.manifest import load_dataset
from pipeline.data.skipped import Skipped
from pipeline.evaluate import evaluate
from pipeline.inference.student import load
from pipeline.packing.check import check
from pipeline.packing.pack import pack
from pipeline.packing.recipes import tabletop
from pipeline.report.page import report
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
        pytest.param(
            "[depth, audio]",
            "[{name: cnn5, width: 4, size: 16}, {name: log_mel_cnn, width: 4}]",
            marks=pytest.mark.slow,
        ),
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


POINTS = (
    "data.batch_size=8",
    "train.steps=3",
    "student.modality={name: points, count: 32}",
    "student.encoder={name: pointnet, width: 4}",
)
LOSSES = "  cross_entropy: {}\n  wcord: {dim: 8}"


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos and point clouds of three classes; each kind of file among the clouds, and a damaged one."""
    folder = tmp_path_factory.mktemp("recordings")
    for number in range(60):
        kind, name = KINDS[number % 5], f"class{number % 3}/{number:03d}"
        for place, suffix, data in (("photos", "jpg", photo(number)), ("scans", kind, written(solid(number), kind))):
            path = folder / place / f"{name}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data[:-3] if suffix == "pcd" and number == 31 else data)
    return folder


@pytest.mark.slow
def test_points_as_students_of_a_photo_s_teacher(make_config: Any, recordings: Path, tmp_path: Path) -> None:
    shards = tmp_path / "packed"
    fields = ("--field", "rgb=photos", "--field", "points=scans", "--label-from", "parent")
    assert call("pack", "folders", recordings, shards, *fields) == 0
    assert {f"points.{kind}" for kind in KINDS} <= load_dataset(shards).fields.keys()
    assert "the point cloud is truncated" in (shards / "refused.jsonl").read_text()
    assert not check(shards, processes=1).faults
    photos = ("student.modality=rgb", "student.encoder={name: cnn5, width: 4, size: 16}")
    teacher = train(configs.load(make_config("teacher", shards=shards), (*POINTS[:2], *photos)))
    path = make_config("student", f"teacher: {{run: {teacher}}}", LOSSES, shards)
    student = train(configs.load(path, POINTS))
    results = evaluate(student)
    assert {"student/top1", "retrieval/student_to_teacher/R@1"} <= results.keys()
    assert report([student]).stat().st_size > 10_000
    skipped: list[Skipped] = []
    assert len(load(student).predict([recordings / "scans"], skipped)) == 59
    assert [fault.key for fault in skipped] == [str(recordings / "scans" / "class1" / "031.pcd")]


def test_points_in_shards_of_others(make_config: Any, tmp_path: Path) -> None:
    """A PLY beside a JPEG is the sample's points by its extension."""
    samples = [
        (f"{number:05d}", {"jpg": photo(number), "ply": written(solid(number), "ply"), "cls": str(number % 3).encode()})
        for number in range(48)
    ]
    plain_tar(tmp_path / "shards" / "train-0000.tar", samples[:32])
    plain_tar(tmp_path / "shards" / "test-0000.tar", samples[32:])
    path = make_config("student", "", "  cross_entropy: {}", tmp_path / "shards")
    assert "student/top1" in evaluate(train(configs.load(path, POINTS)))
