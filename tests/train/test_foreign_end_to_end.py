"""Whole experiments on shards of others, named by a pattern alone: train, resume, cache, evaluate, report, join."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_shards import captioned, img2dataset, photo, plain_tar, shard_writer
from safetensors.torch import load_file
from shapes_dataset import CLASSES, write_dataset

from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.data.foreign import index_folder
from pipeline.evaluate import evaluate
from pipeline.packing.index import index
from pipeline.report.page import report
from pipeline.runs.checkpoint import list_checkpoints
from pipeline.train import train
from pipeline.train.cache_teacher import cache

CONFIG = """
run: {run}
data: {{shards: "{shards}", batch_size: 8, workers: 0, shuffle: 20, crop: [0.7, 1.0]}}
teacher: {{run: {teacher}}}
student: {{modality: text, encoder: {{name: text_transformer, width: 16, depth: 1, heads: 2}}}}
losses: {{{loss}: {{}}}}
train: {{steps: 12, warmup: 2, log_every: 1, checkpoint_every: 5}}
"""
PHOTO = ("student.modality=rgb", "student.encoder={name: cnn5, width: 4, size: 16}")


@pytest.fixture
def config(tmp_path: Path, runs: Path) -> Any:
    """Writes the config of a text student of a photo's teacher; no labels."""

    def write(shards: object, loss: str = "cosine", run: str = "run") -> Path:
        path = tmp_path / f"{run}.yaml"
        text = CONFIG.format(run=tmp_path / run, shards=shards, teacher=runs / "teacher", loss=loss)
        path.write_text(text)
        return path

    return write


def run_of(path: Path, *overrides: str, **keywords: Any) -> Path:
    return train(configs.load(path, overrides), **keywords)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "student" / "model.safetensors")


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    ("how", "loss"), [("img2dataset", "cosine"), ("ShardWriter", "info_nce"), ("keys with folders", "cosine")]
)
def test_an_image_to_text_student_by_a_pattern_alone(
    config: Any, tmp_path: Path, how: str, loss: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = f"{tmp_path}/shards/{{00000..00002}}.tar"
    if how == "img2dataset":
        img2dataset(tmp_path / "shards", [20, 1, 15], lacking={3})
    elif how == "ShardWriter":
        shard_writer(tmp_path / "shards", map(captioned, range(36)), maxcount=15)
    else:
        spec = str(tmp_path / "shards")
        plain_tar(tmp_path / "shards" / "0.tar", [captioned(n, f"v1.0/a.b/{n}") for n in range(36)])
    run = run_of(config(spec, loss), "data.unpaired=skip")
    log = losses(run)
    assert len(log) == 12
    assert log[-1] < log[0]
    assert "all samples are used for training" in capsys.readouterr().out
    assert not list((tmp_path / "shards").glob("*.json*")) or how == "img2dataset"


@pytest.mark.parametrize(("stop", "workers"), [(5, 0), (10, 2)])
def test_a_killed_run_resumes_to_the_same_bits(config: Any, tmp_path: Path, stop: int, workers: int) -> None:
    img2dataset(tmp_path / "shards", [20, 1, 15])
    spec, own = f"{tmp_path}/shards/*.tar", ("train.keep=9", f"data.workers={workers}")
    whole = run_of(config(spec, run="whole"), *own)
    cut = Path(shutil.copytree(whole, tmp_path / "cut"))
    for checkpoint in list_checkpoints(cut / "checkpoints"):
        if int(checkpoint.name[5:]) > stop:
            shutil.rmtree(checkpoint)
    shutil.rmtree(cut / "student")
    run_of(config(spec, run="cut"), *own, resume=True)
    assert losses(cut) == losses(whole)
    assert same(cut, whole)


def test_a_run_resumes_over_the_same_shards_only(config: Any, tmp_path: Path) -> None:
    paths = img2dataset(tmp_path / "shards", [20, 16])
    path = config(f"{tmp_path}/shards/*.tar")
    run_of(path)
    plain_tar(paths[1], [(f"{n}", {"jpg": photo(n), "txt": b"other"}) for n in range(16)])
    with pytest.raises(UserError, match=r"the training shards have changed"):
        run_of(path, "train.steps=14", resume=True)


def test_another_split_of_the_same_shards_is_no_way_to_resume(config: Any, tmp_path: Path) -> None:
    img2dataset(tmp_path / "shards", [20, 20])
    for share in ("0.2", "0.3"):
        index([str(tmp_path / "shards")], tmp_path / "index", splits={"test": share}, hashed=True)
        if share == "0.2":
            run_of(config(tmp_path / "index"))
    with pytest.raises(UserError, match=r"the training shards have changed"):
        run_of(config(tmp_path / "index"), "train.steps=14", resume=True)


@pytest.mark.parametrize("label", ["label", "cls", "json:category"])
def test_labels_are_learnt_and_evaluated_on_what_an_index_holds_out(config: Any, tmp_path: Path, label: str) -> None:
    shard_writer(tmp_path / "shards", map(captioned, range(90)), maxcount=40)
    found = index([str(tmp_path / "shards")], tmp_path / "index", splits={"test": "0.2"}, label=label)
    own = [*PHOTO, f"data.label={label}", "teacher=null", "train.steps=30", "train.learning_rate=0.02"]
    own += [] if label == "json:category" else [f"data.classes=[{', '.join(CLASSES)}]"]
    run = run_of(config(tmp_path / "index", "cross_entropy"), *own)
    results = evaluate(run)
    assert results["samples/test"] == found.samples("test")
    assert results["samples/train"] == found.samples("train")
    assert results["student/top1"] > 0.5
    assert report([run]).stat().st_size > 10_000
    about = json.loads((run / "student" / "network.json").read_text())
    assert about["classes"] == (sorted(CLASSES) if label == "json:category" else CLASSES)


def test_classes_come_from_a_file(config: Any, tmp_path: Path) -> None:
    shard_writer(tmp_path / "shards", map(captioned, range(24)), maxcount=10)
    path = config(f"{tmp_path}/shards/*.tar", "cross_entropy")
    names = tmp_path / "classes.txt"
    names.write_text("\n".join(CLASSES) + "\n")
    run = run_of(path, *PHOTO, "teacher=null", f"data.classes={names}")
    assert json.loads((run / "student" / "network.json").read_text())["classes"] == CLASSES
    names.write_text("disc\nsquare\n")
    with pytest.raises(UserError, match=r"data\.classes: has 2 names, none of them for the value `2` of label"):
        run_of(path, *PHOTO, "teacher=null", f"data.classes={names}", overwrite=True)
    with pytest.raises(UserError, match=r"data\.classes: .*nowhere\.txt: .*Use a text file with one class per line"):
        run_of(path, *PHOTO, "teacher=null", "data.classes=nowhere.txt", overwrite=True)


@pytest.mark.parametrize("indexed", [False, True])
def test_a_teacher_is_cached_beside_the_index_and_training_is_the_same(
    config: Any, tmp_path: Path, indexed: bool
) -> None:
    img2dataset(tmp_path / "shards", [20, 1, 15])
    spec: object = f"{tmp_path}/shards/*.tar"
    folder = index_folder(str(spec))
    if indexed:
        spec = folder = tmp_path / "index"
        index([str(tmp_path / "shards")], folder, splits={"test": "0.2"}, group="json:clip")
    path = config(spec)
    cached = ("teacher.cache=first", "teacher.views=4")
    manifest = cache(configs.load(path, cached))
    assert manifest == folder / "first.cache.json"
    live = run_of(path, f"run={tmp_path / 'live'}")
    with_cache = run_of(path, *cached, f"run={tmp_path / 'cached'}")
    assert losses(with_cache) == pytest.approx(losses(live), rel=1e-5)
    assert sorted(p.name for p in (tmp_path / "shards").glob("*.tar")) == ["00000.tar", "00001.tar", "00002.tar"]
    if indexed:  # a side-car does not keep the index from being made again
        index([str(tmp_path / "shards")], folder, splits={"test": "0.2"}, group="json:clip")


@pytest.mark.parametrize("joined", ["captions of others", "photos that were packed"])
def test_a_join_by_key_is_the_set_that_was_never_apart(config: Any, tmp_path: Path, joined: str) -> None:
    packed = write_dataset(tmp_path / "packed", {"train": [20, 12], "test": [4]})
    captions = [(f"s{n:05d}", {"txt": f"number {n}".encode()}) for n in range(36)]
    whole = [(key, {"rgb.jpg": photo(n), **text}) for n, (key, text) in enumerate(captions)]
    for number, part in enumerate((slice(20), slice(20, 32), slice(32, 36))):
        name = "test-000000.tar" if number == 2 else f"train-{number:06d}.tar"
        plain_tar(tmp_path / "whole" / name, whole[part])
        plain_tar(tmp_path / "captions" / name, captions[part])
    expected = run_of(config(tmp_path / "whole", run="expected"))
    if joined == "captions of others":
        plain_tar(tmp_path / "captions" / "train-000000.tar", reversed(captions[8:20]))  # another order, other shards
        plain_tar(tmp_path / "captions" / "train-000003.tar", captions[:8])
        run = run_of(config(packed), f"data.join=['{tmp_path}/captions/*.tar']")
    else:
        run = run_of(config(tmp_path / "captions"), f"data.join=[{packed}]")
    assert losses(run) == losses(expected)
    assert same(run, expected)
