"""The paired stream: every sample once, in step on all ranks, the same for the same seed, from any batch on."""

from __future__ import annotations

import json
import tarfile
import warnings
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from shapes_dataset import members, write_dataset

from modalities import RGB, Depth
from pipeline.common.errors import UserError
from pipeline.data.augmentation import Augmentation
from pipeline.data.dataset import MANIFEST, Shard
from pipeline.data.manifest import load_dataset, write_shard
from pipeline.data.source import open_split
from pipeline.data.stream import EvalStream, TrainStream, loader
from pipeline.data.views import View

VIEWS = {"teacher": View(RGB(), 24), "student": View(Depth(), 16)}
VARIED = Augmentation(crop=(0.5, 1.0), flip=True)
CPU = torch.device("cpu")


def train_stream(folder: Path, **keywords: Any) -> TrainStream:
    augmentation = replace(VARIED, seed=keywords.pop("seed", 0))
    settings = {"batch": 8, "shuffle": 20} | keywords
    return TrainStream(open_split(folder, "train", "label"), VIEWS, augmentation, **settings)


def take(stream: TrainStream, count: int, workers: int = 0) -> list[dict[str, Any]]:
    batches = loader(stream, workers, CPU)
    return [next(batches) for _ in range(count)]


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a["key"] == b["key"] and all(torch.equal(a[k], b[k]) for k in ("teacher", "student", "label", "group"))


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 3), (2, 0), (3, 2), (4, 5)])
def test_an_epoch_reads_no_sample_twice_and_all_ranks_take_as_many_steps(
    shapes: Path, ranks: int, workers: int
) -> None:
    seen: Counter[str] = Counter()
    for rank in range(ranks):
        stream = train_stream(shapes, batch=4, ranks=ranks, rank=rank)
        assert stream.steps_per_epoch == 96 // (4 * ranks)
        for batch in take(stream, stream.steps_per_epoch, workers):
            assert len(batch["key"]) == 4
            seen.update(batch["key"])
    assert set(seen.values()) == {1}
    assert len(seen) == 96 // (4 * ranks) * 4 * ranks


def test_more_workers_than_cores_are_no_warning(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._utils.cpu_count", lambda: 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(take(train_stream(shapes), 1, workers=2)) == 1


@pytest.mark.parametrize("shards", [1, 5, 16])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 3])
def test_every_epoch_has_every_sample_exactly_once(tmp_path: Path, ranks: int, workers: int, shards: int) -> None:
    """49 samples make 4 global batches of 12: one sample is left out, another one in each epoch."""
    sizes = [49 // shards + (number < 49 % shards) for number in range(shards)]
    folder = write_dataset(tmp_path / "data", {"train": sizes})
    epochs = [Counter[str](), Counter[str]()]
    for rank in range(ranks):
        stream = train_stream(folder, batch=12 // ranks, ranks=ranks, rank=rank)
        for number, batch in enumerate(take(stream, 8, workers)):
            epochs[number // 4].update(batch["key"])
    assert all(set(epoch.values()) == {1} and len(epoch) == 48 for epoch in epochs)


def test_epochs_differ_in_order_and_in_augmentation(shapes: Path) -> None:
    first, second = (take(train_stream(shapes, batch=96), 2)[i] for i in (0, 1))
    assert sorted(first["key"]) == sorted(second["key"])
    assert first["key"] != second["key"]
    again = dict(zip(second["key"], second["student"], strict=True))
    assert sum(torch.equal(x, again[key]) for key, x in zip(first["key"], first["student"], strict=True)) < 10


@pytest.mark.parametrize("workers", [0, 2])
def test_the_index_is_the_place_in_the_split_however_it_is_shuffled(shapes: Path, workers: int) -> None:
    in_order = [sample for shard in open_split(shapes, "train", "label").shards for sample in keys_of(shapes, shard)]
    for rank in range(2):
        for batch in take(train_stream(shapes, ranks=2, rank=rank), 12, workers):  # two epochs
            assert batch["index"].dtype == torch.int64
            assert [in_order[i] for i in batch["index"].tolist()] == batch["key"]
    tested = [key for shard in open_split(shapes, "test", "label").shards for key in keys_of(shapes, shard)]
    for batch in loader(EvalStream(open_split(shapes, "test", "label"), VIEWS, batch=7), workers, CPU):
        assert [tested[i] for i in batch["index"].tolist()] == batch["key"]


def keys_of(folder: Path, shard: Shard) -> list[str]:
    with tarfile.open(folder / shard.file) as file:
        return list(dict.fromkeys(name.partition(".")[0] for name in file.getnames()))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_stream_is_a_function_of_its_seed(shapes: Path, workers: int) -> None:
    one, two = (take(train_stream(shapes, seed=5), 20, workers) for _ in range(2))
    assert all(map(same, one, two))
    other = take(train_stream(shapes, seed=6), 20, workers)
    assert not any(map(same, one, other))


@pytest.mark.parametrize(("start", "workers"), [*product([1, 12, 17], [0, 1]), (17, 3)])
def test_it_can_start_at_any_batch(shapes: Path, workers: int, start: int) -> None:
    whole = take(train_stream(shapes), 28, workers)  # 12 batches an epoch
    resumed = take(train_stream(shapes, start=start), 28 - start, workers)
    assert all(map(same, whole[start:], resumed))


def test_samples_are_pairs_under_one_geometry(shapes: Path) -> None:
    """The shape is bright in the photo and near in the depth map: at the same place in both, if the geometry is one."""
    views = {"teacher": View(RGB(jitter=0.0), 32), "student": View(Depth(jitter=0.0, dropout=0.0, far=2.0), 32)}
    stream = TrainStream(open_split(shapes, "train", "label"), views, VARIED, batch=96)
    batch = next(loader(stream, 0, CPU))
    photo = batch["teacher"].float().amax(1).flatten(1)
    bright = photo > photo.amin(1, keepdim=True) / 2 + photo.amax(1, keepdim=True) / 2
    near = batch["student"][:, 0].flatten(1) < 0.1  # 1.1 m of 0 to 2 m
    assert ((bright == near).float().mean(1) > 0.9).float().mean() > 0.95


def test_views_of_one_modality_may_differ_in_size(shapes: Path) -> None:
    views = {"teacher": View(RGB(), 24), "student": View(RGB(), 16)}
    batch = next(loader(TrainStream(open_split(shapes, "train", "label"), views, batch=4), 0, CPU))
    assert batch["teacher"].shape == (4, 3, 24, 24)
    assert batch["student"].shape == (4, 3, 16, 16)
    assert batch["teacher"].dtype == torch.uint8
    means = [batch[role].float().mean((1, 2, 3)) for role in ("teacher", "student")]
    torch.testing.assert_close(*means, atol=8.0, rtol=0)  # the same photo in the same light


def test_parameters_of_before_are_read_with_a_warning(shapes: Path) -> None:
    source = open_split(shapes, "train", "label")
    now = TrainStream(source, VIEWS, Augmentation(3, (0.5, 1.0), True), batch=8)
    with pytest.warns(FutureWarning, match=r"TrainStream\(seed, crop, flip\): use augmentation=Augmen"):
        before = TrainStream(source, VIEWS, batch=8, seed=3, crop=(0.5, 1.0), flip=True)
    assert all(same(one, two) for one, two in zip(take(now, 3), take(before, 3), strict=True))


def test_a_field_that_no_sample_has_is_named(shapes: Path) -> None:
    stream = TrainStream(open_split(shapes, "train", "label"), {"student": View(RGB(field="noto"), 16)}, batch=4)
    with pytest.raises(UserError, match=r"has no noto\.jpg or noto\.png or noto\.webp, which"):
        next(loader(stream, 0, CPU))


def test_labels_groups_and_the_fraction_that_is_seen(shapes: Path) -> None:
    source = open_split(shapes, "train", "label", visible_labels=0.3, seed=1)
    batch = next(loader(TrainStream(source, VIEWS, batch=96), 0, CPU))
    index = torch.tensor([int(key[1:]) for key in batch["key"]])
    seen = batch["label"] >= 0
    assert torch.equal(batch["label"][seen], index[seen] % 3)
    assert 0.15 < seen.float().mean() < 0.45
    other = open_split(shapes, "train", "label", visible_labels=0.3, seed=2)
    assert not torch.equal(next(loader(TrainStream(other, VIEWS, batch=96), 0, CPU))["label"] >= 0, seen)
    assert len(batch["group"].unique()) == 48
    parity = next(loader(TrainStream(open_split(shapes, "train", "parity"), VIEWS, batch=96), 0, CPU))
    assert torch.equal(parity["label"], torch.tensor([int(key[1:]) for key in parity["key"]]) % 2)


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 2), (3, 2), pytest.param(2, 20, marks=pytest.mark.slow)])
def test_evaluation_sees_every_sample_once(shapes: Path, ranks: int, workers: int) -> None:
    source = open_split(shapes, "test", "label")
    keys: list[str] = []
    for rank in range(ranks):
        stream = EvalStream(source, VIEWS, batch=7, ranks=ranks, rank=rank)
        keys += [key for batch in loader(stream, workers, CPU) for key in batch["key"]]
    assert sorted(keys) == [f"s{i:05d}" for i in range(96, 126)]


def damaged(tmp_path: Path, change: Any) -> Path:
    """A dataset whose second training shard is rewritten by `change(samples)`, with a matching dataset.json."""
    folder = write_dataset(tmp_path / "data", {"train": [8, 8], "test": [4]})
    samples = change([(f"s{i:05d}", members(i)) for i in range(8, 16)])
    shard = write_shard(folder / "train-000001.tar", samples)
    dataset = load_dataset(folder)
    dataset.splits["train"][1] = replace_samples(shard, 8)
    (folder / MANIFEST).write_text(dataset.model_dump_json())
    return folder


def replace_samples(shard: Any, count: int) -> Any:
    return shard.model_copy(update={"samples": count})


def without(member: str) -> Any:
    return lambda samples: [
        (k, {m: v for m, v in s.items() if m != member or i != 3}) for i, (k, s) in enumerate(samples)
    ]


def with_member(member: str, data: bytes) -> Any:
    return lambda samples: [(k, s | ({member: data} if i == 3 else {})) for i, (k, s) in enumerate(samples)]


FAULTS = {
    "no depth": (without("depth.png"), r"train-000001.tar: sample s00011: has no depth.png.*wcord check"),
    "no photo": (without("rgb.jpg"), r"sample s00011: has no rgb.jpg or rgb.png"),
    "bad photo": (with_member("rgb.jpg", b"not a photo"), r"train-000001.tar: sample s00011: rgb.jpg: "),
    "label too large": (with_member("label.txt", b"7"), r"sample s00011: label `7` is not a class index in 0..2"),
    "label in words": (with_member("label.txt", b"disc"), r"sample s00011: label `disc` is not a class index"),
    "label of many digits": (with_member("label.txt", b"1" * 5000), r"label `1{40}` is not a class index in 0..2"),
    "bad meta": (with_member("meta.json", b"{"), r"sample s00011: meta.json: not valid JSON"),
    "a sample too few": (lambda samples: samples[:-1], r"train-000001.tar: has 7 samples instead of 8"),
    "a sample too many": (
        lambda samples: [*samples, ("s99", members(99))],
        r"train-000001.tar: has 9 samples instead of 8",
    ),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_name_shard_key_and_cure(tmp_path: Path, fault: str, workers: int) -> None:
    change, message = FAULTS[fault]
    folder = damaged(tmp_path, change)
    with pytest.raises(UserError, match=message):
        take(train_stream(folder), 2, workers)


@pytest.mark.parametrize("labels", ["null", "[1]", "1"])
def test_labels_that_are_no_object_are_named(tmp_path: Path, labels: str) -> None:
    folder = damaged(tmp_path, with_member("meta.json", f'{{"labels": {labels}}}'.encode()))
    with pytest.raises(UserError, match=r"sample s00011: label `labels: .*` is not a class index in 0..1"):
        take(TrainStream(open_split(folder, "train", "parity"), VIEWS, batch=16), 1)


def test_keys_and_groups_may_be_no_text(tmp_path: Path) -> None:
    def change(samples: list[Any]) -> list[Any]:
        (_, first), *rest = with_member("meta.json", b'{"group": "caf\\udce9"}')(samples)
        return [("caf\udce9", first), *rest]

    (batch,) = take(TrainStream(open_split(damaged(tmp_path, change), "train", "label"), VIEWS, batch=16), 1)
    assert "caf\udce9" in batch["key"]
    assert (batch["group"] >= 0).all()


def test_a_shard_cut_short_is_found_before_and_while_reading(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data", {"train": [16], "test": [4]})
    source = open_split(folder, "train", "label")
    path = folder / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:15_000])
    with pytest.raises(UserError, match=r"train-000000.tar: shard has 15000 bytes .*truncated"):
        open_split(folder, "train", "label")
    with pytest.raises(UserError, match=r"train-000000.tar"):
        take(TrainStream(source, VIEWS, batch=16), 1)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset.json: not found.*wcord pack"):
        open_split(tmp_path, "train", "label")
    folder = write_dataset(tmp_path / "data", {"train": [6], "test": [4]})
    with pytest.raises(UserError, match=r"no label `gesture`.*it has: label, parity"):
        open_split(folder, "train", "gesture")
    with pytest.raises(UserError, match=r"split `val` has no samples.*train \(6 samples\), test \(4 samples\)"):
        open_split(folder, "val", "label")
    with pytest.raises(UserError, match=r"6 samples, fewer than the global batch of 16; lower data.batch_size"):
        train_stream(folder, ranks=2)
    (folder / "train-000000.tar").unlink()
    with pytest.raises(UserError, match=r"train-000000.tar: shard is missing"):
        open_split(folder, "train", "label")


def test_json_of_a_dataset_is_not_trusted_with_paths(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data", {"train": [6], "test": [4]})
    content = json.loads((folder / MANIFEST).read_text())
    for name in ("../train-000000.tar", "/etc/passwd", "pipe:ls"):
        content["splits"]["train"][0]["file"] = name
        (folder / MANIFEST).write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"splits.train.0.file"):
            open_split(folder, "train", "label")


def test_prepare_needs_no_geometry_to_be_drawn_in_evaluation(shapes: Path) -> None:
    source = replace(open_split(shapes, "test", "label"))
    one, two = (next(loader(EvalStream(source, VIEWS, batch=30), 0, CPU)) for _ in range(2))
    assert same(one, two)
