"""Masks from shards to results: train a teacher and a student, evaluate, report; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from shapes_dataset import members, write_dataset

from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.data.augmentation import Augmentation
from pipeline.data.dataset import MANIFEST, Dataset
from pipeline.data.manifest import write_shard
from pipeline.data.prepare import Prepare
from pipeline.data.shard_reader import read_range
from pipeline.data.source import open_split
from pipeline.data.stream import EvalStream
from pipeline.data.views import View
from pipeline.evaluate import evaluate
from pipeline.evaluate.segmentation import confusion
from pipeline.models.build import build_model
from pipeline.models.network import load_network, save_network
from pipeline.report.page import report
from pipeline.train import train
from pipeline.train.cache_teacher import cache

NAMES = ["background", "disc", "square", "cross"]
TEACHER = ["student.modality=rgb", "data.label=shape"]


def masked(index: int) -> dict[str, bytes]:
    """A sample of the small dataset with its shape's class as a mask; each fifth has none."""
    made = members(index)
    depth = cv2.imdecode(np.frombuffer(made["depth.png"], np.uint8), cv2.IMREAD_UNCHANGED)
    mask = np.where(depth < 1100, 10 * (1 + index % 3), 0).astype(np.uint8)
    mask[:2] = 255  # of no class
    return made | ({} if index % 5 == 4 else {"shape.png": cv2.imencode(".png", mask)[1].tobytes()})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masks")
    about = Dataset.model_validate_json(
        (write_dataset(folder / "plain", {"train": [1], "test": [1]}) / MANIFEST).read_bytes()
    )
    splits = {"train": range(60), "test": range(60, 80)}
    shards = {
        split: [write_shard(folder / f"{split}-000000.tar", ((f"s{i:05d}", masked(i)) for i in rows))]
        for split, rows in splits.items()
    }
    dataset = about.model_copy(
        update={
            "splits": shards,
            "fields": about.fields | {"shape.png": 64},
            "classes": about.classes | {"shape": NAMES},
            "masks": {"shape": [0, 10, 20, 30]},
        }
    )
    (folder / MANIFEST).write_text(dataset.model_dump_json())
    return folder


def test_a_student_of_masks_from_end_to_end(data: Path, make_config: Any) -> None:
    path = make_config("teacher", shards=data)
    teacher = train(configs.load(path, [*TEACHER, "train.steps=60", "train.learning_rate=0.02", "evaluation.every=30"]))
    log = [json.loads(line) for line in (teacher / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log if "held_out/mIoU" in row] == [30, 60]
    losses = "  cross_entropy: {}\n  kd: {}\n  local_global: {dim: 8}\n  position_transport: {}\n  wcord: {dim: 8}"
    path = make_config("student", f"teacher: {{run: {teacher}}}", losses, shards=data)
    overrides = ["data.label=shape", "data.label_fraction=0.5", "train.steps=20", "train.learning_rate=0.02"]
    student = train(configs.load(path, overrides))
    results = evaluate(student)
    assert results["teacher/pixel_accuracy"] > 0.8
    assert 0 < results["student/mIoU"] <= 1
    each = [value for name, value in results.items() if name.startswith("student/IoU/")]
    assert results["student/mIoU"] == pytest.approx(np.mean(each))
    assert "student/top1" not in results
    assert "student/probe" not in results
    kept = np.load(student / "evaluation" / "masks.npz", allow_pickle=False)
    assert kept["truth"].shape == kept["student"].shape == kept["teacher"].shape
    assert set(np.unique(kept["truth"])) <= {-1, 0, 1, 2, 3}
    page = report([student]).read_text()
    assert page.count("data:image/png;base64") >= 5 * len(kept["keys"])
    assert all(name in page for name in NAMES)


def test_masks_come_under_the_geometry_of_their_sample(data: Path, make_config: Any) -> None:
    """The shape is near: wherever the depth map says near, the mask says shape, under every crop and flip."""
    model = build_model(configs.load(make_config(shards=data), ["data.label=shape"]))
    source = open_split(data, "train", "shape", 0.5, seed=3)
    view = model.views["student"]
    assert isinstance(view, View)
    prepare = Prepare(
        source,
        {"student": View(type(view.modality)(near=0.5, far=2, jitter=0, dropout=0), 64)},
        Augmentation(0, (0.4, 0.9), True),
    )
    raws = list(read_range(source.layout, source.shards, 0, 60, prepare.members))
    batch = prepare.collate([prepare(raw, epoch=1) for raw in raws])
    assert batch["mask"].shape == (60, 64, 64)
    assert (batch["label"] == -1).all()
    seen = (batch["mask"] >= 0).flatten(1).any(1)
    assert 15 < seen.sum() < 33  # half of the four fifths that have one
    near, shape = batch["student"][seen, 0] < -0.2, batch["mask"][seen] > 0
    known = batch["mask"][seen] >= 0
    assert (near == shape)[known].float().mean() > 0.93  # they differ on outlines, which depth mixes
    for row, raw in enumerate(raws):
        found = set(batch["mask"][row].unique().tolist())
        assert found <= {-1, 0, 1 + int(raw["__key__"][1:]) % 3}


def test_a_network_with_a_decoder_is_taken_away_whole(data: Path, make_config: Any, tmp_path: Path) -> None:
    model = build_model(configs.load(make_config(shards=data), ["data.label=shape"]))
    save_network(model.student, tmp_path / "student")
    loaded = load_network(tmp_path / "student")
    assert loaded.dims == model.student.dims
    assert loaded.dims.dense
    x = torch.randn(2, 2, 16, 16)
    expected = model.student.eval()(x).logits
    assert expected is not None
    assert expected.shape == (2, 4, 16, 16)
    torch.testing.assert_close(loaded.eval()(x).logits, expected)


def test_a_student_that_sees_two_modalities_has_one_decoder(data: Path, make_config: Any) -> None:
    encoder = "{name: cnn5, width: 4, size: 16}"
    overrides = ["data.label=shape", "student.modality=[rgb, depth]", f"student.encoder=[{encoder}, {encoder}]"]
    run = train(configs.load(make_config(shards=data), [*overrides, "train.steps=3"]))
    assert "student/mIoU" in evaluate(run)


PLACES = "  cross_entropy: {}\n  local_global: {dim: 8}\n  position_transport: {}"
UNTRAINED = "teacher: {modality: rgb, encoder: {name: cnn5, width: 4, size: 16, weights: random}}"


def test_the_batch_can_be_seen_in_parts(data: Path, make_config: Any) -> None:
    path = make_config("student", UNTRAINED, PLACES, shards=data)
    run = train(configs.load(path, ["data.label=shape", "train.micro_batch=8", "train.steps=3"]))
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert all(np.isfinite(value) for value in last.values())


def test_networks_in_half_precision(data: Path, make_config: Any) -> None:
    model = build_model(configs.load(make_config("student", UNTRAINED, PLACES, shards=data), ["data.label=shape"]))
    batch = next(iter(EvalStream(open_split(data, "train", "shape"), model.views, batch=8)))
    exact = model(batch).loss
    with torch.autocast("cpu", torch.bfloat16):
        half = model(batch)
    assert half.loss.dtype == torch.float32
    assert set(half.terms) == {"cross_entropy", "local_global", "position_transport"}
    torch.testing.assert_close(half.loss, exact, rtol=0.05, atol=0)


def test_ranks_together_count_what_one_does(data: Path, make_config: Any) -> None:
    model = build_model(configs.load(make_config(shards=data), ["data.label=shape"])).eval()
    source = open_split(data, "test", "shape")

    def counts(ranks: int, rank: int) -> torch.Tensor:
        stream = EvalStream(source, model.views, batch=4, ranks=ranks, rank=rank)
        found = [(model.student(batch["student"]).logits.argmax(1), batch["mask"]) for batch in stream]
        parts = [confusion(predicted, mask, source.task.classes) for predicted, mask in found]
        return torch.stack(parts).sum(0)

    assert torch.equal(counts(3, 0) + counts(3, 1) + counts(3, 2), counts(1, 0))


def test_a_cached_teacher_gives_its_pixels(data: Path, make_config: Any) -> None:
    teacher = train(configs.load(make_config("teacher", shards=data), [*TEACHER, "train.steps=3"]))
    path = make_config("student", f"teacher: {{run: {teacher}, cache: pixels}}", "  kd: {}", shards=data)
    config = configs.load(path, ["data.label=shape", "train.steps=3"])
    cache(config)
    train(config)
    plain = configs.load(path, ["data.label=shape", "train.steps=3", "teacher.cache=null", f"run={config.run}_plain"])
    train(plain)
    losses = [
        json.loads((Path(run) / "metrics.jsonl").read_text().splitlines()[-1])["loss/kd"]
        for run in (config.run, plain.run)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(
    ("losses", "teacher_label", "message"),
    [
        (
            "  cross_entropy: {}\n  dkd: {}",
            "shape",
            r"losses.dkd: requires one class per sample, but data.label `shape` is a mask",
        ),
        ("  kd: {}", "label", r"losses.kd: the student predicts one class per pixel, the teacher one class per sample"),
    ],
)
def test_losses_that_do_not_fit_are_refused(
    data: Path, make_config: Any, losses: str, teacher_label: str, message: str
) -> None:
    overrides = ["student.modality=rgb", f"data.label={teacher_label}", "train.steps=1"]
    teacher = train(configs.load(make_config("teacher", shards=data), overrides))
    path = make_config("student", f"teacher: {{run: {teacher}}}", losses, shards=data)
    with pytest.raises(UserError, match=message):
        build_model(configs.load(path, ["data.label=shape"]))


def test_encoders_without_maps_of_a_picture_are_refused(data: Path, make_config: Any) -> None:
    overrides = ["data.label=shape", "student.modality={name: audio}", "student.encoder={name: log_mel_cnn}"]
    with pytest.raises(
        UserError,
        match=r"student: segmentation masks require .* image feature maps, which log_mel_cnn does not have",
    ):
        build_model(configs.load(make_config(shards=data), overrides))


def test_a_label_without_its_member_is_refused(data: Path, tmp_path: Path) -> None:
    dataset = json.loads((data / MANIFEST).read_text())
    del dataset["fields"]["shape.png"]
    (tmp_path / MANIFEST).write_text(json.dumps(dataset))
    with pytest.raises(UserError, match=r"the mask `shape` requires the member shape.png, but no sample has it"):
        open_split(tmp_path, "train", "shape")
    (tmp_path / MANIFEST).write_text(json.dumps(dataset | {"masks": {"shape": [0, 1]}}))
    with pytest.raises(UserError, match=r"the mask `shape` has 4 classes and 2 pixel values"):
        open_split(tmp_path, "train", "shape")
