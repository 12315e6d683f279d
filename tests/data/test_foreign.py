"""Shards of others as a dataset: every sample once, the right members, labels and splits; faults are named."""

from __future__ import annotations

import gzip
import io
import logging
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_shards import (
    captioned,
    hugging_face,
    img2dataset,
    keys_by_webdataset,
    photo,
    plain_tar,
    shard_writer,
    tiny,
)
from shapes_dataset import CLASSES, write_dataset

from modalities import RGB, Depth, Text
from modalities.base import Geometry
from pipeline.common.errors import UserError
from pipeline.data import stream as streams
from pipeline.data.dataset import MANIFEST, Dataset
from pipeline.data.foreign import index_folder, is_foreign, splits_by_name
from pipeline.data.manifest import load_dataset
from pipeline.data.shard_urls import SEPARATOR
from pipeline.data.source import OpenDataset, Policy, Source, open_dataset, open_split
from pipeline.data.stream import EvalStream, TrainStream, loader
from pipeline.data.views import View
from pipeline.packing.check import check
from pipeline.packing.index import index

CPU = torch.device("cpu")
TEXT = {"student": View(Text(), 16)}
BOTH = {"teacher": View(RGB(), 24), "student": View(Text(), 16)}


def read_as(stream: Any, worker: int, workers: int, patch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What one worker of a loader would yield, in this process."""
    patch.setattr(streams, "worker_place", lambda: (worker, workers))
    return iter(stream)


def test_members_that_systems_leave_are_skipped_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    left = [
        "._{}.txt",
        "a/._{}.txt",
        "__MACOSX/{}.txt",
        "Thumbs.db",
        "a/desktop.ini",
        "@eaDir/{}.txt",
        "._" + "x" * 110,
    ]
    path = tmp_path / "set" / "0.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(3):
            for name in [*left, "a/{}.txt", left[number], "a/{}.jpg"]:
                info = tarfile.TarInfo(name.format(number))
                info.size = len(data := photo(number) if name.endswith("jpg") else b"a shape")
                tar.addfile(info, io.BytesIO(data))
    (path.parent / "@eaDir").mkdir()
    shutil.copy(path, path.parent / "@eaDir" / "0.tar")
    for _ in range(2):
        dataset = load_dataset(str(path.parent))
        assert dataset.extensions == {"jpg": 3, "txt": 3}
    assert caplog.text.count("skipped 24 operating-system files or folders") == 1
    assert epoch(open_split(str(path.parent), "train", "label"), 1, 0, monkeypatch, BOTH) == Counter(
        ["a/0", "a/1", "a/2"]
    )
    assert not check(path.parent).faults


def epoch(source: Source, ranks: int, workers: int, patch: pytest.MonkeyPatch, views: Any = None) -> Counter[str]:
    """The keys of one epoch over all ranks and workers."""
    found: Counter[str] = Counter()
    for rank in range(ranks):
        stream = TrainStream(source, views or TEXT, batch=1, ranks=ranks, rank=rank, shuffle=10)
        for worker in range(workers or 1):
            batches = read_as(stream, worker, workers or 1, patch)
            own = range(worker, stream.steps_per_epoch, workers or 1)
            found.update(key for _ in own for key in next(batches)["key"])
    patch.undo()
    return found


def seen(source: Source, views: Any = None) -> list[str]:
    return [key for batch in loader(EvalStream(source, views or TEXT, batch=5), 0, CPU) for key in batch["key"]]


def written(folder: Path, how: str) -> tuple[list[Path], str]:
    """Shards of 36 captions and where they are, as somebody else wrote them."""
    if how == "ShardWriter":
        paths = shard_writer(folder, map(captioned, range(36)), maxcount=10)
        return paths, str(folder)
    if how == "one shard":
        paths = shard_writer(folder, map(captioned, range(36)), maxcount=36)
        return paths, str(paths[0])
    if how == "img2dataset":
        return img2dataset(folder, [30, 1, 5]), f"{folder}/{{00000..00002}}.tar"
    keys = [f"v1.0/clip.{n // 5}/{n:04d}" for n in range(36)]
    paths = [plain_tar(folder / f"{n}.tar", [tiny(k, keys[k]) for k in range(n, 36, 3)]) for n in range(3)]
    return paths, f"{folder}/*.tar"


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("how", ["ShardWriter", "one shard", "img2dataset", "folders and dots"])
def test_an_epoch_has_the_keys_of_webdataset_once_each(
    tmp_path: Path, how: str, ranks: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, spec = written(tmp_path / "shards", how)
    source = open_split(spec, "train", "label")
    assert epoch(source, ranks, workers, monkeypatch) == Counter(keys_by_webdataset(paths))


@pytest.mark.parametrize("how", ["ShardWriter", "one shard", "img2dataset", "folders and dots"])
@pytest.mark.parametrize("readers", [1, 2, 5])
def test_so_has_an_evaluation(tmp_path: Path, how: str, readers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, spec = written(tmp_path / "shards", how)
    source = open_split(spec, "train", "label")
    found = [
        key
        for rank in range(readers)
        for worker in range(2)
        for batch in read_as(EvalStream(source, TEXT, batch=1, ranks=readers, rank=rank), worker, 2, monkeypatch)
        for key in batch["key"]
    ]
    assert found == keys_by_webdataset(paths)


def test_real_loader_processes_read_the_same(tmp_path: Path) -> None:
    paths, spec = written(tmp_path / "shards", "ShardWriter")
    batches = loader(TrainStream(open_split(spec, "train", "label"), BOTH, batch=4), 2, CPU)
    assert Counter(key for _ in range(9) for key in next(batches)["key"]) == Counter(keys_by_webdataset(paths))


def test_a_thousand_tiny_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [[tiny(10 * n + place) for place in range(1 + n % 2)] for n in range(1000)]
    for number, own in enumerate(samples):
        plain_tar(tmp_path / "shards" / f"{number:05d}.tar", own)
    source = open_split(f"{tmp_path}/shards/{{00000..00999}}.tar", "train", "label")
    expected = Counter(key for own in samples for key, _ in own)
    assert epoch(source, 2, 2, monkeypatch) == expected
    assert Counter(seen(source)) == expected


def test_members_labels_and_pairs_are_those_of_the_sample(tmp_path: Path) -> None:
    img2dataset(tmp_path / "shards", [7, 5])
    data = open_dataset(tmp_path / "shards", "json:category")
    assert data.manifest.names == {"jpg": "rgb.jpg", "txt": "text.txt"}
    assert data.classes == sorted(CLASSES)
    batches = loader(EvalStream(data.split("train"), BOTH, batch=12), 0, CPU)
    (batch,) = batches
    number = [int(key[:5]) * 7 + int(key[5:]) for key in batch["key"]]
    assert [data.classes[label] for label in batch["label"]] == [CLASSES[n % 3] for n in number]
    text, rgb = Text(), RGB()
    tokens = [text.augment([captioned(n)[1]["txt"].decode()], Geometry(), 16, None) for n in number]
    assert torch.equal(batch["student"]["ids"], text.collate(tokens)["ids"])
    photos = [rgb.augment(rgb.decode(photo(n), {}), Geometry(), 24, None) for n in number]
    assert torch.equal(batch["teacher"], rgb.collate(photos))


def test_depth_maps_and_classes_of_the_datasets_library(tmp_path: Path) -> None:
    folder = hugging_face(tmp_path / "hub", {"train": [9, 4], "validation": [3], "test": [5]})
    data = open_dataset(folder)
    assert {split: data.manifest.samples(split) for split in data.manifest.splits} == {"train": 13, "test": 5, "val": 3}
    assert data.manifest.fields == {"depth.png": 21, "label.txt": 21, "rgb.jpg": 21}
    assert data.classes == ["0", "1", "2"]
    views = {"teacher": View(RGB(), 24), "student": View(Depth(near=0.5, far=2.0), 16)}
    (batch,) = loader(EvalStream(data.split("test"), views, batch=8), 0, CPU)
    assert batch["label"].tolist() == [int(key, 16) % 3 for key in batch["key"]]
    assert batch["student"].shape[0] == batch["teacher"].shape[0] == 5


def test_capital_extensions_and_notes_about_the_shard(tmp_path: Path) -> None:
    samples = [
        ("__meta__/who", {"txt": b"me"}),
        ("a/1", {"JPEG": photo(1), "TXT": b"one"}),
        ("a/2", {"Jpg": photo(2), "Txt": b"two"}),
    ]
    path = plain_tar(tmp_path / "0.tar", samples)
    source = open_split(path, "train", "label")
    assert seen(source, BOTH) == ["a/1", "a/2"] == keys_by_webdataset([path])
    assert check(path).faults == []


def test_a_missing_caption_is_an_error_or_skipped_and_counted(tmp_path: Path) -> None:
    img2dataset(tmp_path / "shards", [6, 6], lacking={2, 9})
    with pytest.raises(
        UserError, match=r"00000\.tar: sample 000000002: has no text\.txt, which the modality `text` reads"
    ):
        seen(open_split(tmp_path / "shards", "train", "label"), BOTH)
    source = open_split(tmp_path / "shards", "train", "label", policy=Policy(unpaired="skip"))
    assert len(seen(source, BOTH)) == 10


def test_a_corrupt_member_names_shard_and_key_or_is_skipped_and_counted(tmp_path: Path) -> None:
    for folder in ("a", "b"):  # shards of the same name
        samples = [captioned(n, f"{folder}{n}") for n in range(4)]
        samples[2][1]["jpg"] = b"\xff\xd8 not a photo"  # type: ignore[index]
        plain_tar(tmp_path / "shards" / folder / "0.tar", samples)
    with pytest.raises(UserError, match=r"a/0\.tar: sample a2: rgb\.jpg: "):
        seen(open_split(tmp_path / "shards", "train", "label"), BOTH)
    source = open_split(tmp_path / "shards", "train", "label", policy=Policy(max_faulty=0.5))
    batches = list(loader(EvalStream(source, BOTH, batch=2), 0, CPU))
    assert [key for batch in batches for key in batch["key"]] == ["a0", "a1", "a3", "b0", "b1", "b3"]
    skipped = [one for batch in batches for one in batch["skipped"]]
    assert {(one.shard, one.place, one.key) for one in skipped} == {("0.tar", 2, "a2"), ("b-0.tar", 2, "b2")}


def test_a_shard_damaged_before_its_first_use_is_skipped_as_far_as_faults_are_allowed(tmp_path: Path) -> None:
    paths = shard_writer(tmp_path / "shards", map(captioned, range(12)), maxcount=4)
    paths[1].write_bytes(paths[1].read_bytes()[:-7000])
    with pytest.raises(UserError, match=r"00001\.tar: .*truncated.*data\.max_faulty"):
        open_split(tmp_path / "shards", "train", "label")
    source = open_split(tmp_path / "shards", "train", "label", policy=Policy(max_faulty=0.5))
    rest: list[Any] = []
    batches = list(loader(EvalStream(source, TEXT, batch=4), 0, CPU, rest))
    assert [key for batch in batches for key in batch["key"]] == keys_by_webdataset([paths[0], paths[2]])
    skipped = [one for batch in batches for one in batch["skipped"]] + rest
    assert {one.shard for one in skipped} == {"00001.tar"}
    assert len(skipped) == source.samples - 8 > 0
    assert any("00001.tar: the tar is damaged after" in fault for fault in check(tmp_path / "shards").faults)


def test_a_damaged_shard_is_named_and_never_to_be_deleted(tmp_path: Path) -> None:
    paths = shard_writer(tmp_path / "shards", map(captioned, range(12)), maxcount=4)
    open_split(tmp_path / "shards", "train", "label")
    data = bytearray(paths[1].read_bytes())
    source = open_split(tmp_path / "shards", "train", "label", policy=Policy(max_faulty=0.5))
    data[0] ^= 1
    paths[1].write_bytes(data)
    with pytest.raises(UserError, match=r"00001\.tar: .*Repair the shard or remove it from data\.shards"):
        open_split(tmp_path / "shards", "train", "label")
    rest: list[Any] = []
    batches = list(loader(EvalStream(source, TEXT, batch=4), 0, CPU, rest))
    lost = [*rest, *(one for batch in batches for one in batch["skipped"])]
    assert (sum(len(batch["key"]) for batch in batches), len(lost)) == (8, 4)
    assert "delete" not in lost[0].message
    assert "remove it from data.shards" in lost[0].message


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([tiny(0), tiny(1), tiny(0)], "members of sample 000000000 are not adjacent, or two samples have this key"),
        ([("a", {"txt": b"1", "TXT": b"2"})], r"a\.TXT is twice in one sample"),
    ],
)
def test_what_nobody_can_tell_apart_is_refused(tmp_path: Path, samples: Any, message: str) -> None:
    plain_tar(tmp_path / "0.tar", samples)
    with pytest.raises(UserError, match=rf"0\.tar: {message}"):
        seen(open_split(tmp_path / "0.tar", "train", "label"))


def test_a_gzipped_tar_is_refused_whatever_it_is_called(tmp_path: Path) -> None:
    path = plain_tar(tmp_path / "0.tar", [tiny(0)])
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(UserError, match=r"0\.tar: the tar is compressed with gzip.* decompress it \(`gunzip`\)"):
        load_dataset(path)


def test_a_packed_folder_is_read_as_packed(shapes: Path) -> None:
    assert not is_foreign(shapes)
    assert not load_dataset(shapes).extensions
    assert is_foreign(shapes / "train-000000.tar")
    assert is_foreign(f"{shapes}/*.tar")
    assert load_dataset(f"{shapes}/train-*.tar").fields == {
        "depth.png": 96,
        "label.txt": 96,
        "meta.json": 96,
        "rgb.jpg": 96,
    }


def test_a_packing_that_was_not_finished_keeps_its_message(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data", {"train": [4]})
    (folder / MANIFEST).unlink()
    (folder / ".pack").mkdir()
    with pytest.raises(
        UserError,
        match=r"packing was interrupted\. In the latter case, run the same `wcord pack` command again; it resumes",
    ):
        load_dataset(folder)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{folder}", r"dataset\.json: not found\. Either .* is not a packed dataset"),
        ("{folder}/*.tar", r"contains no dataset\.json and no \.tar\."),
        ("pipe:cat x.tar", r"pipe: commands are never run"),
        ("https://me:secret@host/{{0..3}}.tar", r"must not contain a user name or password"),
    ],
)
def test_where_there_are_no_shards(tmp_path: Path, spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        load_dataset(spec.format(folder=tmp_path))
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train-0000.tar", "train-0001.tar", "test-0000.tar"], ["train", "train", "test"]),
        (["a/train/0.tar", "a/validation/0.tar", "a/dev/1.tar"], ["train", "val", "val"]),
        (["test/a/0.tar", "test/b/0.tar"], ["train", "train"]),  # nothing to train on otherwise
        (["contest-0.tar", "testament-1.tar"], ["train", "train"]),
        (["/data/x_TRAIN.tar", "/data/x_Test.tar"], ["train", "test"]),
        (["s3://bucket/train/0.tar", "/data/mine/0.tar"], ["train", "train"]),
        (["/test/0.tar"], ["train"]),
    ],
)
def test_splits_are_read_from_names(names: list[str], splits: list[str]) -> None:
    assert [splits_by_name(names)[name] for name in names] == splits


def test_an_index_is_remembered_and_made_again_where_a_shard_changed(tmp_path: Path) -> None:
    shard_writer(tmp_path / "shards", map(tiny, range(10)), maxcount=5)
    spec = f"{tmp_path}/shards/*.tar"
    first = load_dataset(spec)
    manifest = index_folder(spec) / MANIFEST
    made = manifest.stat().st_mtime_ns
    assert load_dataset(spec) == first
    assert manifest.stat().st_mtime_ns == made
    assert Dataset.model_validate_json(manifest.read_bytes()).named({}) == first
    plain_tar(tmp_path / "shards" / "00001.tar", map(tiny, range(20, 23)))
    again = load_dataset(spec)
    assert again.samples("train") == 8
    assert again.digest() != first.digest()
    assert list((tmp_path / "shards").iterdir()) != []
    assert not (tmp_path / "shards" / MANIFEST).exists()


def test_lists_are_one_data_set_in_their_order(tmp_path: Path) -> None:
    a = shard_writer(tmp_path / "a", [captioned(n, f"a{n}") for n in range(4)], maxcount=2)
    b = shard_writer(tmp_path / "b", [captioned(n, f"b{n}") for n in range(3)], maxcount=2)
    source = open_split(SEPARATOR.join([str(tmp_path / "b"), str(a[1])]), "train", "label")
    assert seen(source) == keys_by_webdataset([*b, a[1]])
    assert len({shard.file for shard in source.shards}) == 3


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["disc", "square"], r"data\.classes: has 2 names, none of them for the value `2` of label"),
        (["disc", "square", "cross"], ""),
        (["a", "b", "c", "d"], ""),
    ],
)
def test_names_for_the_numbers_of_classes(tmp_path: Path, names: list[str], message: str) -> None:
    shard_writer(tmp_path / "shards", map(captioned, range(6)), maxcount=6)
    data = open_dataset(tmp_path / "shards")
    if message:
        with pytest.raises(UserError, match=message):
            data.manifest.classed("label", names)
        return
    named: OpenDataset = replace(data, manifest=data.manifest.classed("label", names))
    assert named.classes == names
    (batch,) = loader(EvalStream(named.split("train"), BOTH, batch=8), 0, CPU)
    assert batch["label"].tolist() == [0, 1, 2, 0, 1, 2]


def test_classes_of_a_packed_data_set_are_its_own(shapes: Path) -> None:
    with pytest.raises(
        UserError, match=r"data\.classes: this dataset has its class names in dataset\.json\. Remove data\.classes"
    ):
        load_dataset(shapes).classed("label", ["a", "b", "c"])


def test_a_label_that_no_sample_has_is_named(tmp_path: Path) -> None:
    img2dataset(tmp_path / "shards", [6])
    with pytest.raises(
        UserError,
        match=r"data\.label: no label `json:colour` in this dataset; it has: none\. If .* --label json:colour",
    ):
        open_dataset(tmp_path / "shards", "json:colour").split("train")


def test_an_index_of_another_label_trains_without_labels(tmp_path: Path) -> None:
    img2dataset(tmp_path / "shards", [6])
    index([str(tmp_path / "shards")], tmp_path / "index", label="json:category")
    (batch,) = loader(EvalStream(open_split(tmp_path / "index", "train", "label"), BOTH, batch=6), 0, CPU)
    assert batch["label"].tolist() == [-1] * 6
    assert open_split(tmp_path / "index", "train", "json:category").task.classes == 3


def test_a_label_that_is_none_of_the_classes_names_shard_and_key(tmp_path: Path) -> None:
    paths = shard_writer(tmp_path / "shards", map(captioned, range(6)), maxcount=6)
    data = open_dataset(tmp_path / "shards", "json:category")
    fewer = data.manifest.model_copy(update={"classes": {"json:category": ["disc", "square"]}})
    with pytest.raises(UserError, match=rf"{paths[0]}: sample 000000002: json: `cross` is neither.*data\.label or"):
        seen(replace(data, manifest=fewer).split("train"), BOTH)


def test_a_moved_folder_is_another_data_set_to_its_caches(tmp_path: Path) -> None:
    shard_writer(tmp_path / "a", map(tiny, range(4)), maxcount=4)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert index_folder(tmp_path / "a") != index_folder(tmp_path / "b")
    assert index_folder("s3://bucket/a") == index_folder("s3://bucket/a")
