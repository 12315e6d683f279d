"""Shards of others, packed anew: nothing is lost, paired wrongly or read twice, and options do what they say."""

from __future__ import annotations

import json
import logging
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unicodedata import normalize

import cv2
import numpy as np
import pytest
from command_line import call
from foreign_shards import captioned, hugging_face, img2dataset, photo, plain_tar, shard_writer
from shapes_dataset import CLASSES, write_dataset
from sources import content, depth_map, jpeg, png, samples_in, wav

from pipeline.common.errors import UserError
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import load_dataset
from pipeline.packing.check import check
from pipeline.packing.index import index
from pipeline.packing.pack import pack
from pipeline.packing.recipes import webdataset as recipe
from pipeline.packing.recipes.shard_members import resize


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """40 samples with photo, caption, class and JSON in 3 shards."""
    shard_writer(tmp_path / "shards", map(captioned, range(40)), maxcount=16)
    return tmp_path / "shards"


def packed(out: Path, *shards: Path | str, max_refused: float = 0.05, **options: Any) -> Dataset:
    dataset = pack(recipe.plan([*map(str, shards)], **options), out, max_refused=max_refused)
    assert check(out).faults == []
    return dataset


def samples(out: Path) -> dict[str, dict[str, Any]]:
    """Key -> members and split of each sample."""
    splits = load_dataset(out).splits
    return {sample["__key__"]: sample | {"split": split} for split in splits for sample in samples_in(out, split)}


def refused(out: Path) -> dict[str, tuple[str, str]]:
    rows = map(json.loads, (out / "refused.jsonl").read_text().splitlines())
    return {row["key"]: (row["file"], row["reason"]) for row in rows}


def test_every_sample_is_there_with_its_own_members(shards: Path, tmp_path: Path) -> None:
    dataset = packed(tmp_path / "out", shards)
    assert dataset.fields == {"rgb.jpg": 40, "text.txt": 40, "label.txt": 40, "meta.json": 40}
    assert (dataset.recipe, dataset.name, dataset.classes) == ("webdataset", "shards", {"label": ["0", "1", "2"]})
    found = samples(tmp_path / "out")
    assert len(found) == 40
    for number in range(40):
        key, held = captioned(number)
        assert (found[key]["rgb.jpg"], found[key]["text.txt"]) == (held["jpg"], held["txt"])
        assert int(found[key]["label.txt"]) == number % 3
        assert json.loads(found[key]["meta.json"])["source"] == f"{number // 16:05d}.tar: {key}"
    assert {sample["split"] for sample in found.values()} == {"train", "test"}


def test_labels_groups_and_json_are_kept(shards: Path, tmp_path: Path) -> None:
    options = {"label": "json:labels.kind", "group": "json:clip", "fields": {"rgb": ["jpg"], "meta": ["json"]}}
    dataset = packed(tmp_path / "out", shards, **options)
    assert dataset.fields == {"rgb.jpg": 40, "label.txt": 40, "meta.json": 40}
    assert dataset.classes == {"label": sorted(CLASSES)}
    splits: dict[str, set[str]] = {}
    for key, sample in samples(tmp_path / "out").items():
        meta = json.loads(sample["meta.json"])
        assert meta["group"] == f"c{int(key) // 4}"
        assert meta["caption"] == f"a photo of a {CLASSES[int(key) % 3]}"
        assert dataset.classes["label"][int(sample["label.txt"])] == CLASSES[int(key) % 3]
        splits.setdefault(meta["group"], set()).add(sample["split"])
    assert all(len(found) == 1 for found in splits.values())


def test_classes_are_named(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    arguments = (shards, tmp_path / "out", "--classes", tmp_path / "names.txt", "--workers", 1)
    assert call("pack", "webdataset", *arguments) == 0
    assert load_dataset(tmp_path / "out").classes == {"label": list(CLASSES)}


def test_a_label_that_is_no_class_is_refused(shards: Path, tmp_path: Path) -> None:
    plain_tar(shards / "more.tar", [("bad", {"jpg": photo(1), "json": b"{}"}), ("none", {"jpg": photo(2)})])
    dataset = packed(tmp_path / "out", shards, label="json:category")
    assert dataset.fields["label.txt"] == 40
    assert refused(tmp_path / "out") == {"bad": ("more.tar: bad", "json: has no value at category")}
    assert "none" in samples(tmp_path / "out")


def test_what_does_not_decode_is_refused_and_listed(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    img2dataset(folder, [30, 10], lacking={3})
    bad = {"jpg": photo(1)[:-40], "txt": b"cut short"}
    plain_tar(
        folder / "bad.tar", [("bad", bad), ("none", {"gif": b"GIF89a"}), ("empty", {"jpg": photo(2), "txt": b""})]
    )
    dataset = packed(tmp_path / "out", folder, max_refused=0.1)
    assert dataset.fields == {"rgb.jpg": 40, "text.txt": 39, "meta.json": 40}
    found = refused(tmp_path / "out")
    assert {key: file for key, (file, _) in found.items()} == {
        "bad": "bad.tar: bad: rgb.jpg", "none": "bad.tar: none", "empty": "bad.tar: empty: text.txt",
    }  # fmt: skip
    assert "truncated" in found["bad"][1]
    assert found["none"][1] == "none of its members is a field: gif"


def test_splits_of_the_shards_are_kept(tmp_path: Path) -> None:
    hugging_face(tmp_path / "set", {"train": [20, 5], "validation": [6], "test": [7]})
    dataset = packed(tmp_path / "out", tmp_path / "set")
    assert {split: dataset.samples(split) for split in dataset.splits} == {"train": 25, "val": 6, "test": 7}
    assert dataset.units == {"depth.png": "millimetres, 0 = no reading"}
    assert dataset.split_rule == "given by the shards: by shard"


def test_an_index_is_packed_with_its_splits_inside_shards(shards: Path, tmp_path: Path) -> None:
    index([str(shards)], tmp_path / "index", splits={"test": "0.2"}, group="json:clip")
    said = load_dataset(tmp_path / "index")
    dataset = packed(tmp_path / "out", tmp_path / "index")
    assert {s: dataset.samples(s) for s in dataset.splits} == {s: said.samples(s) for s in said.splits}
    assert dataset.samples("test") > 0


def test_a_packed_set_keeps_labels_groups_and_camera(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data", {"train": [50, 30, 16], "test": [20, 10]})
    before, dataset = load_dataset(folder), packed(tmp_path / "out", folder)
    assert (dataset.classes, dataset.fields, dataset.units) == (before.classes, before.fields, before.units)
    own = {sample["__key__"]: sample for split in before.splits for sample in samples_in(folder, split)}
    for key, sample in samples(tmp_path / "out").items():
        assert {n: sample[n] for n in ("rgb.jpg", "depth.png", "label.txt")} == {
            n: own[key][n] for n in ("rgb.jpg", "depth.png", "label.txt")
        }
        old, new = (json.loads(one["meta.json"]) for one in (own[key], sample))
        assert {name: new.get(name) for name in ("group", "labels", "intrinsics")} == {
            name: old.get(name) for name in ("group", "labels", "intrinsics")
        }
    with pytest.raises(UserError, match=r"a packed dataset has its labels in dataset\.json"):
        recipe.plan([str(folder)], label="label")


def test_the_first_extension_that_a_sample_has_is_its_field(tmp_path: Path) -> None:
    both = [(f"{n:03d}", {"jpg": photo(n), "left.png": png(np.full((9, 9, 3), n, np.uint8))}) for n in range(10)]
    plain_tar(tmp_path / "a.tar", [*both, ("one", {"jpg": photo(9)})])
    packed(tmp_path / "out", tmp_path / "a.tar", fields={"rgb": ["left.png", "jpg"]})
    found = samples(tmp_path / "out")
    assert "rgb.png" in found["003"]
    assert "rgb.jpg" not in found["003"]
    assert found["one"]["rgb.jpg"] == photo(9)


# Sizes.


def test_larger_photos_are_reduced_and_others_stay(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"wide": (40, 100), "high": (90, 30), "small": (20, 300), "same": (30, 31)}
    images = {name: rng.integers(0, 255, (*shape, 3), np.uint8) for name, shape in shapes.items()}
    held = [(name, {"png": png(image), "depth.png": depth_map(1)}) for name, image in images.items()]
    plain_tar(tmp_path / "a.tar", [*held, ("bad", {"png": b"\x89PNG"})])
    packed(tmp_path / "out", tmp_path / "a.tar", size=30, max_refused=0.2)
    found = samples(tmp_path / "out")
    assert {name: [m for m in sample if m.startswith("rgb")] for name, sample in found.items()} == {
        "wide": ["rgb.jpg"], "high": ["rgb.png"], "small": ["rgb.png"], "same": ["rgb.png"],
    }  # fmt: skip
    small = cv2.imdecode(np.frombuffer(found["wide"]["rgb.jpg"], np.uint8), cv2.IMREAD_COLOR)
    assert small.shape == (30, 75, 3)
    assert found["wide"]["depth.png"] == depth_map(1)
    assert "truncated" in refused(tmp_path / "out")["bad"][1] or "not a JPEG" in refused(tmp_path / "out")["bad"][1]
    with pytest.raises(UserError, match="--size 0"):
        recipe.plan([str(tmp_path / "a.tar")], size=0)


def test_a_photo_that_is_turned_by_its_header_is_turned_when_it_is_reduced() -> None:
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 40:] = 255
    data = cv2.imencode(".jpg", image)[1].tobytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    turned = data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:]
    name, small = resize("rgb.jpg", turned, 20)
    found = cv2.imdecode(np.frombuffer(small, np.uint8), cv2.IMREAD_COLOR)
    assert (name, found.shape) == ("rgb.jpg", (40, 20, 3))
    assert (found[5].mean(), found[-5].mean()) == (pytest.approx(0, abs=5), pytest.approx(255, abs=5))


def test_shards_have_the_target_size_after_reduction(tmp_path: Path) -> None:
    large = cv2.resize(cv2.imdecode(np.frombuffer(jpeg(0), np.uint8), cv2.IMREAD_COLOR), (900, 700))
    data = cv2.imencode(".jpg", large)[1].tobytes()
    plain_tar(tmp_path / "a.tar", ((f"{n:04d}", {"jpg": data, "npy": bytes(9000)}) for n in range(400)))
    small = len(resize("rgb.jpg", data, 64)[1])
    plan = recipe.plan([str(tmp_path / "a.tar")], size=64)
    assert plan.samples[0].size == pytest.approx(small, rel=0.1)
    assert len(pack(plan, tmp_path / "out", shard_bytes=40 * small, min_shards=1).splits["train"]) in (8, 9)


# Filters.

FILTERS = """
import json

def clips(samples):
    for sample in samples:
        if json.loads(sample["json"])["clip"] in ("c0", "c5"):
            yield sample

def shout(samples):
    for sample in samples:
        yield sample | {"text.txt": sample["text.txt"].upper()}

def wrong(samples):
    for sample in samples:
        yield sample | {"text.txt": 3}

def broken(samples):
    for sample in samples:
        raise KeyError("score")
"""


@pytest.fixture
def _filters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "packing_filters.py").write_text(FILTERS)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    import sys

    sys.modules.pop("packing_filters", None)


@pytest.mark.usefixtures("_filters")
def test_filters_exclude_and_change_samples(shards: Path, tmp_path: Path, caplog: Any) -> None:
    caplog.set_level("INFO")
    filters = ["packing_filters:clips", "packing_filters:shout"]
    dataset = packed(tmp_path / "out", shards, filters=filters)
    found = samples(tmp_path / "out")
    assert sorted(map(int, found)) == [0, 1, 2, 3, 20, 21, 22, 23]
    assert all(sample["text.txt"].startswith(b"A PHOTO OF A") for sample in found.values())
    assert (dataset.refused, refused(tmp_path / "out")) == (0, {})
    assert "excluded by the filter: 32 samples" in caplog.text


@pytest.mark.usefixtures("_filters")
def test_a_changed_filter_is_another_packing(shards: Path, tmp_path: Path) -> None:
    stamps = [next(iter(recipe.plan([str(shards)], filters=["packing_filters:shout"]).samples)).stamp]
    (tmp_path / "packing_filters.py").write_text(FILTERS.replace("upper", "lower"))
    stamps.append(next(iter(recipe.plan([str(shards)], filters=["packing_filters:shout"]).samples)).stamp)
    assert stamps[0] != stamps[1]


@pytest.mark.usefixtures("_filters")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("packing_filters:nothing", "--filter: packing_filters:nothing: module packing_filters has no 'nothing'"),
        ("packing_filters:broken", "--filter: packing_filters:broken failed on .*KeyError: 'score'"),
        ("packing_filters:wrong", "--filter: packing_filters:wrong must return every member as bytes; text.txt is int"),
    ],
)
def test_a_filter_that_fails_stops_packing(shards: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe.plan([str(shards)], filters=[name])


# Joins.


def test_shards_are_joined_by_key_in_whatever_order_they_are(shards: Path, tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(60).tolist()
    sounds = [(f"{n:09d}", {"wav": wav(50 + n), "txt": b"another caption"}) for n in order if n not in (7, 11)]
    shard_writer(tmp_path / "sounds", sounds, maxcount=13)
    dataset = packed(tmp_path / "out", shards, join=str(tmp_path / "sounds"))
    assert dataset.fields == {"audio.wav": 38, "rgb.jpg": 38, "text.txt": 38, "label.txt": 38, "meta.json": 38}
    for key, sample in samples(tmp_path / "out").items():
        assert sample["audio.wav"] == wav(50 + int(key))
        assert sample["text.txt"] == captioned(int(key))[1]["txt"]
    missing = f"no sample with this key in {tmp_path / 'sounds'}"
    assert {key: reason for key, (_, reason) in refused(tmp_path / "out").items()} == {
        f"{n:09d}": missing for n in (7, 11)
    }


def test_labels_of_pandas_are_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    values = [1.0, float("nan"), "02", None, -1, "10.0", "", 0]
    made = [(f"{n}", {"jpg": photo(n), "json": json.dumps({"kind": v}).encode()}) for n, v in enumerate(values)]
    shard = plain_tar(tmp_path / "photos.tar", made)
    dataset = packed(tmp_path / "out", shard, label="json:kind")
    assert dataset.classes == {"label": [str(number) for number in range(11)]}
    found = {key: sample.get("label.txt") for key, sample in samples(tmp_path / "out").items()}
    assert found == dict(zip("01234567", [b"1", None, b"2", None, None, b"10", None, b"0"], strict=True))
    assert caplog.text.count("is read as the whole number 2") == 1
    assert caplog.text.count("`-1` is read as no label") == 1
    assert check(str(shard)).faults == []


def test_keys_are_joined_in_any_normal_form(tmp_path: Path) -> None:
    keys = ["kätzchen", "huhn"]
    photos = [(normalize("NFC", key), {"jpg": photo(number)}) for number, key in enumerate(keys)]
    plain_tar(tmp_path / "photos.tar", photos)
    plain_tar(tmp_path / "texts.tar", [(normalize("NFD", key), {"txt": key.encode()}) for key in keys])
    dataset = packed(tmp_path / "out", tmp_path / "photos.tar", join=str(tmp_path / "texts.tar"))
    assert dataset.fields == {"meta.json": 2, "rgb.jpg": 2, "text.txt": 2}


def test_keys_that_occur_twice_are_not_joined(shards: Path, tmp_path: Path) -> None:
    plain_tar(tmp_path / "a.tar", [("000000001", {"wav": wav()})])
    plain_tar(tmp_path / "b.tar", [("000000001", {"wav": wav(60)})])
    with pytest.raises(UserError, match="the key `000000001` occurs twice"):
        recipe.plan([str(shards)], join=f"{tmp_path}/a.tar::{tmp_path}/b.tar")
    with pytest.raises(UserError, match=r"a\.tar: 000000001` and `b\.tar: 000000001` both"):
        recipe.plan([f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"])


def test_depth_with_its_camera_is_joined_from_a_packed_set(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data", {"train": [50, 30, 16], "test": [20, 10]})
    keys = [sample["__key__"] for sample in samples_in(folder, "train")]
    plain_tar(tmp_path / "photos.tar", ((key, {"jpg": photo(int(key[1:]))}) for key in keys))
    packed(tmp_path / "out", tmp_path / "photos.tar", join=str(folder))
    own = {sample["__key__"]: sample for sample in samples_in(folder, "train")}
    for key, sample in samples(tmp_path / "out").items():
        assert sample["depth.png"] == own[key]["depth.png"]
        assert sample["rgb.jpg"] == photo(int(key[1:]))
        assert "label.txt" not in sample


# As other recipes.


@pytest.mark.usefixtures("forked_pools")
def test_more_processes_give_the_same_bytes_and_nothing_is_written_twice(shards: Path, tmp_path: Path) -> None:
    for name, workers in (("one", 1), ("two", 2)):
        pack(recipe.plan([str(shards)], workers=workers), tmp_path / name, workers=workers)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").glob("*.tar")}
    packed(tmp_path / "one", shards)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "one").glob("*.tar")} == times


def test_a_shard_that_changes_while_it_is_packed_is_refused(shards: Path, tmp_path: Path) -> None:
    plan = recipe.plan([str(shards)])
    shard_writer(shards, map(captioned, range(1, 41)), maxcount=16)
    with pytest.raises(UserError, match="is no longer where it was; the shard has changed"):
        pack(plan, tmp_path / "out")


def test_keys_with_folders_and_dots(tmp_path: Path) -> None:
    keys = [f"{folder}/{n:03d}" for folder in ("clip", "v1.0", "a/b.c") for n in range(4)]
    plain_tar(tmp_path / "a.tar", (captioned(n, key) for n, key in enumerate(keys)))
    packed(tmp_path / "out", tmp_path / "a.tar")
    found = samples(tmp_path / "out").values()
    assert sorted(json.loads(sample["meta.json"])["source"] for sample in found) == sorted(f"a.tar: {k}" for k in keys)
    assert sorted(sample["rgb.jpg"] for sample in found) == sorted(photo(n) for n in range(len(keys)))


def test_pickles_are_never_packed(tmp_path: Path) -> None:
    held = {"jpg": photo(0), "scores.pkl": pickle.dumps(1)}
    plain_tar(tmp_path / "a.tar", ((f"{n:03d}", held) for n in range(10)))
    assert packed(tmp_path / "out", tmp_path / "a.tar").fields == {"rgb.jpg": 10, "meta.json": 10}
    with pytest.raises(UserError, match=r"--field scores=scores\.pkl: .*can execute code"):
        recipe.plan([str(tmp_path / "a.tar")], fields={"scores": ["scores.pkl"]})


def test_shards_of_a_store_are_read_in_pieces(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    monkeypatch.setenv("WCORD_CACHE", str(tmp_path / "cache"))
    store = fsspec.filesystem("memory")
    for path in shards.glob("*.tar"):
        store.pipe_file(f"/pieces/{path.name}", path.read_bytes())
    packed(tmp_path / "far", "memory://pieces/{00000..00002}.tar", name="shards")
    packed(tmp_path / "near", shards)
    assert samples(tmp_path / "far").keys() == samples(tmp_path / "near").keys()
    assert not list((tmp_path / "cache").rglob("0*.tar"))
    for key, sample in samples(tmp_path / "far").items():
        assert sample["rgb.jpg"] == photo(int(key))
    store.rm("/pieces", recursive=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--field", "rgb=png"), "--field rgb=png: no sample has this member; there are cls, jpg, json, txt"),
        (("--field", "rgb"), "--field rgb: expected a field and its source"),
        (("--field", "label=cls"), "--field label=cls: `label` is not a valid field name"),
        (("--label", "json:nothing"), "--label json:nothing: no sample has a class there; the members are cls, jpg"),
        (("--group", "jsno:clip"), "--group jsno:clip: no sample has a member `jsno`; the members are cls, jpg"),
        (("--classes", "missing.txt"), "--classes missing.txt: .*Specify a text file with one class per line"),
        (("--filter", "nowhere:f"), "--filter: nowhere:f: cannot import nowhere"),
        (("--join", "nowhere"), "nowhere.*not found"),
    ],
)
@pytest.mark.usefixtures("shards")
def test_wrong_options_are_named(
    options: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("pack", "webdataset", "shards", "out", "--workers", 1, *options) == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


@pytest.mark.usefixtures("shards")
def test_the_output_is_not_among_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("pack", "webdataset", "shards", "shards/packed") == 2
    assert "shards/packed: is inside shards" in capsys.readouterr().err


def test_folders_of_shards_are_sent_to_the_right_command(tmp_path: Path, capsys: Any) -> None:
    img2dataset(tmp_path / "laion", [10, 10])
    assert call("pack", "folders", tmp_path, tmp_path / "out", "--field", "rgb=laion", "--workers", 1) == 2
    said = capsys.readouterr().err
    assert f"wcord index {tmp_path}/laion --out" in said
    assert f"wcord pack webdataset {tmp_path}/laion" in said


def test_parts_of_it_give_the_same_bytes(shards: Path, tmp_path: Path) -> None:
    assert call("pack", "webdataset", shards, tmp_path / "whole", "--size", 20, "--workers", 1) == 0
    for part in ("2/2", "1/2"):
        assert call("pack", "webdataset", shards, tmp_path / "parts", "--size", 20, "--workers", 1, "--part", part) == 0
    assert content(tmp_path / "whole") == content(tmp_path / "parts")


def test_a_member_that_is_there_twice_is_refused(shards: Path, tmp_path: Path) -> None:
    twice = {"jpg": photo(1), "JPG": photo(2)}
    plain_tar(shards / "more.tar", [("twice", twice)])
    packed(tmp_path / "out", shards)
    assert refused(tmp_path / "out") == {"twice": ("more.tar: twice", "twice.JPG: twice in one sample")}
