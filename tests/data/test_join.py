"""Join by key: photos in one dataset, depth maps in another, in other shards and another order."""

from __future__ import annotations

import gc
import json
import random
import weakref
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
import torch
from foreign_shards import plain_tar
from shapes_dataset import members, write_dataset

from modalities import RGB, Depth
from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.data.augmentation import Augmentation
from pipeline.data.dataset import MANIFEST, Layout
from pipeline.data.join import Join
from pipeline.data.manifest import load_dataset, write_shard
from pipeline.data.shard_reader import read_range
from pipeline.data.source import Policy, open_split
from pipeline.data.stream import TrainStream, loader
from pipeline.data.views import View
from pipeline.evaluate import evaluate
from pipeline.train import train

VIEWS = {"teacher": View(RGB(), 24), "student": View(Depth(), 16)}


def apart(folder: Path, lost: tuple[int, ...] = ()) -> tuple[Path, Path]:
    """The samples of `shapes`, their depth maps in a dataset of their own; some of those are lost."""
    photos = write_dataset(folder / "photos", {"train": [50, 30, 16], "test": [30]})
    maps = write_dataset(folder / "maps", {"all": [63, 63]})
    rewrite(
        photos, {"train": [range(50), range(50, 80), range(80, 96)], "test": [range(96, 126)]}, "rgb.jpg", "label.txt"
    )
    order = [i for i in range(126) if i not in lost]
    random.Random(1).shuffle(order)
    rewrite(maps, {"all": [order[:40], order[40:]]}, "depth.png")
    return photos, maps


def rewrite(folder: Path, splits: dict[str, Any], *kept: str) -> None:
    about = load_dataset(folder)
    for split, shards in splits.items():
        for place, numbers in enumerate(shards):
            samples = [(f"s{i:05d}", {k: v for k, v in members(i).items() if k in kept}) for i in numbers]
            about.splits[split][place] = write_shard(folder / f"{split}-{place:06d}.tar", samples)
    (folder / MANIFEST).write_text(about.model_dump_json())


def epoch(photos: Path, workers: int = 0, **more: Any) -> list[dict[str, Any]]:
    augmentation = Augmentation(crop=(0.5, 1.0), flip=True)
    stream = TrainStream(open_split(photos, "train", "label", **more), VIEWS, augmentation, batch=8)
    batches = loader(stream, workers, torch.device("cpu"))
    return [next(batches) for _ in range(12)]


@pytest.mark.parametrize("workers", [0, 2])
def test_joined_samples_are_the_ones_that_were_never_apart(tmp_path: Path, shapes: Path, workers: int) -> None:
    photos, maps = apart(tmp_path)
    for joined, whole in zip(epoch(photos, workers, join=[str(maps)]), epoch(shapes, workers), strict=True):
        assert joined["key"] == whole["key"]
        assert torch.equal(joined["student"], whole["student"])
        assert torch.equal(joined["teacher"], whole["teacher"])


def test_intrinsics_come_with_the_depth_maps_they_are_of(tmp_path: Path) -> None:
    camera = {"fx": 40.0, "fy": 41.0, "cx": 15.0, "cy": 16.0}
    photos, maps = apart(tmp_path)
    for folder, split, meta, kept in (
        (photos, "test", {"group": "own"}, "rgb.jpg"),
        (maps, "all", {"group": "theirs", "labels": {"parity": 1}, "intrinsics": camera}, "depth.png"),
    ):
        about = load_dataset(folder)
        samples = [("s00000", {kept: members(0)[kept], "meta.json": json.dumps(meta).encode()})]
        about.splits = {split: [write_shard(folder / f"{split}-000000.tar", samples)]}
        (folder / MANIFEST).write_text(about.model_dump_json())
    wanted = frozenset({"rgb.jpg", "meta.json"})
    (sample,) = read_range(Layout(photos), load_dataset(photos).splits["test"], 0, 1, wanted)
    joined = Join(maps, load_dataset(maps)).complete(sample, frozenset({"depth.png", "meta.json"}))
    meta = json.loads(joined["meta.json"])
    assert meta == {"group": "own", "intrinsics": camera}
    assert Depth().decode(joined["depth.png"], meta).intrinsics == (40.0, 41.0, 15.0, 16.0)


def test_what_the_other_data_set_lacks_is_an_error_or_skipped_and_counted(tmp_path: Path) -> None:
    photos, maps = apart(tmp_path, lost=(3, 70))
    with pytest.raises(UserError, match=r"sample s000(03|70): has no depth.png or depth.npy"):
        epoch(photos, join=[str(maps)])
    batches = epoch(photos, join=[str(maps)], policy=Policy(unpaired="skip"))
    assert {s.key for batch in batches for s in batch["skipped"]} == {"s00003", "s00070"}


def test_faults_of_the_other_data_set_are_named(tmp_path: Path) -> None:
    photos, maps = apart(tmp_path)
    rewrite(maps, {"all": [[1, 2], [2, 3]]}, "depth.png")
    with pytest.raises(UserError, match="1 keys occur more than once, the first of them in all-00000"):
        Join(maps, load_dataset(maps))
    (maps / "all-000001.tar").unlink()
    with pytest.raises(UserError, match=r"all-000001\.tar"):
        epoch(photos, join=[str(maps)])
    with pytest.raises(UserError, match=r"nowhere/dataset\.json: not found"):
        epoch(photos, join=["nowhere"])


def test_a_damaged_shard_of_the_other_data_set_is_skipped_and_counted(tmp_path: Path) -> None:
    photos, maps = apart(tmp_path, lost=(3,))
    shard = maps / "all-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"all-000001\.tar: its SHA-256 differs"):
        epoch(photos, join=[str(maps)])
    batches = epoch(photos, join=[str(maps)], policy=Policy(max_faulty=0.5))
    skipped = {s.key: s for batch in batches for s in batch["skipped"]}
    seen = {key for batch in batches for key in batch["key"]}
    readable = {
        s["__key__"] for s in read_range(Layout(maps), load_dataset(maps).splits["all"][:1], 0, 40, frozenset())
    }
    train = {f"s{i:05d}" for i in range(96)}
    assert (seen, set(skipped)) == (train & readable, train - readable)
    assert {(s.cause, s.unpaired) for s in skipped.values()} == {("shard", False)}
    assert all("all-000001.tar" in s.message for s in skipped.values())


def test_keys_match_in_any_normal_form(tmp_path: Path) -> None:
    keys = ["huhn", "kätzchen", "łódź é", "日本"]
    spec = str(plain_tar(tmp_path / "0.tar", [(normalize("NFD", key), {"txt": key.encode()}) for key in keys]))
    join = Join(spec, load_dataset(spec))
    for key in keys:
        raw = {"__key__": normalize("NFC", key), "__url__": "0.tar"}
        assert join.complete(raw, frozenset({"text.txt"})) == {**raw, "text.txt": key.encode()}


def test_a_file_that_is_closed_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.join.OPEN", 1)
    _, maps = apart(tmp_path)
    join = Join(maps, load_dataset(maps))
    files = []
    for number in [0, 1] * 5:
        files.append(weakref.ref(join._file(number)))
        assert not join._file(number).closed
    gc.collect()
    assert sum(file() is not None for file in files) == 1


def test_there_may_be_more_shards_than_two_bytes_count(monkeypatch: pytest.MonkeyPatch, shapes: Path) -> None:
    about, last = load_dataset(shapes), 70_000
    shard = about.splits["train"][0]
    about.splits = {"train": [shard.model_copy(update={"file": f"{number}.tar"}) for number in range(last + 1)]}
    monkeypatch.setattr(Join, "_rows", lambda self, number, shard: [(7, number, 0, 0)] if number == last else [])
    assert Join(shapes, about).table["shard"].tolist() == [last]


def test_a_run_trains_and_is_measured_on_joined_data(make_config: Any, tmp_path: Path) -> None:
    photos, maps = apart(tmp_path)
    joined = f"data.join=[{maps}]"
    teacher = train(configs.load(make_config("teacher", shards=photos), ["student.modality=rgb", "train.steps=4"]))
    path = make_config("student", f"teacher: {{run: {teacher}}}", "  wcord: {dim: 8}", shards=photos)
    results = evaluate(train(configs.load(path, [joined])))
    assert results["samples/test"] == 30
