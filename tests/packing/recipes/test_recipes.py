"""From tables, folders and generators to the same kind of plan."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any
from unicodedata import normalize

import cv2
import numpy as np
import pytest
from PIL import Image
from sources import (
    CLASSES,
    FIELDS,
    depth_map,
    jpeg,
    make_source,
    plan_of,
    refusals,
    samples_in,
    sound_file,
    wav,
    with_column,
)

from modalities import Depth, Text
from pipeline.common.errors import UserError
from pipeline.data.member_formats import member_name
from pipeline.data.task import Task
from pipeline.packing.check import check
from pipeline.packing.pack import pack
from pipeline.packing.recipes import folders, manifest, tabletop
from pipeline.packing.recipes.plan import Plan, add_camera, add_masks, parse_fields, safe_key


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound table; do not change it."""
    return make_source(tmp_path_factory.mktemp("source"))


# The recipe `manifest`.


def test_jsonl_says_the_same_as_csv(source: Path, tmp_path: Path) -> None:
    table = source.with_suffix(".jsonl")
    rows = [json.dumps(row) for row in csv.DictReader(source.open())]
    table.write_text("\n".join([*rows, "", "[1, 2]", "{"]))
    from_csv, from_jsonl = plan_of(source), plan_of(table)
    assert list(from_jsonl.samples) == list(from_csv.samples)
    assert [(fault.file, fault.reason) for fault in from_jsonl.refused] == [
        ("line 32", "not a JSON object"),
        ("line 33", "not a JSON object"),
    ]


def jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_list_of_captions_is_one_a_line(tmp_path: Path) -> None:
    captions = {"one": ["a  red\nball ", "it lies there"], "two": "a single one", "three": [], "four": ["last"]}
    table = jsonl(tmp_path / "a.jsonl", *({"id": key, "said": said, "boxes": [1]} for key, said in captions.items()))
    plan = manifest.plan(table, {"text": "said"})
    texts = {sample.key: sample.texts["text.txt"] for sample in plan.samples}
    assert texts == {"one": "a red ball\nit lies there", "two": "a single one", "four": "last"}
    assert Text().decode(plan.samples[0].read()["text.txt"], {}) == ["a red ball", "it lies there"]
    assert [fault.reason for fault in plan.refused] == ["all its fields are empty"]


def test_numbers_truth_and_null_in_jsonl_are_as_in_csv(tmp_path: Path) -> None:
    rows = [{"id": 7, "said": 1.5, "kind": True}, {"id": 8, "said": "x", "kind": None}]
    plan = manifest.plan(jsonl(tmp_path / "a.jsonl", *rows), {"text": "said"}, ["kind"])
    assert [(s.key, s.texts["text.txt"], s.label) for s in plan.samples] == [("7", "1.5", 0), ("8", "x", None)]
    assert plan.classes == {"label": ["True"]}


@pytest.mark.parametrize("column", ["id", "said", "kind", "clip", "part"])
@pytest.mark.parametrize(
    ("value", "kind"), [([1, 2], "a list of"), (["a", None], "a list of"), ([["a"]], "a list of"), ({"a": 1}, "an obj")]
)
def test_a_list_or_object_where_text_is_wanted_is_refused(tmp_path: Path, column: str, value: Any, kind: str) -> None:
    good = {"id": "a", "said": "x", "kind": "cat", "clip": "c", "part": "train"}
    table = jsonl(tmp_path / "a.jsonl", good, good | {"id": "b", column: value})
    plan = manifest.plan(table, {"text": "said"}, ["kind"], group="clip", split="part")
    assert [sample.key for sample in plan.samples] == ["a"]
    assert plan.classes == {"label": ["cat"]}
    (fault,) = plan.refused
    assert (fault.file, fault.key) == ("line 2", "" if column == "id" else "b")
    assert fault.reason.startswith(f"column `{column}` contains {kind}")


def test_partners_of_no_text_are_refused(tmp_path: Path) -> None:
    rows = [{"id": name, "kind": kind, "part": "train"} for name, kind in (("a", "cat"), ("b", {"is": "cat"}))]
    first, second = jsonl(tmp_path / "a.jsonl", *rows), jsonl(tmp_path / "b.jsonl", *rows)
    plan = manifest.plan(first, {"text": "partner.id"}, ["kind"], split="part", partners=second)
    assert [(sample.key, sample.texts["text.txt"]) for sample in plan.samples] == [("a", "a")]
    reasons = {fault.file: fault.reason[:30] for fault in plan.refused}
    assert reasons == dict.fromkeys(["line 2", f"{second} line 2"], "column `kind` contains an obje")


def test_empty_cells_are_fields_and_labels_that_a_sample_lacks(tmp_path: Path) -> None:
    table = make_source(tmp_path / "source")
    with_column(table, "map", lambda row: "" if row["id"] == "a/001" else f"maps/{row['id']}.png")
    with_column(table, "kind", lambda row: "" if row["clip"] == "clip2" else row["class"])
    dataset = pack(plan_of(table, fields={"rgb": "photos/{id}.jpg", "depth": "map"}, labels=["kind"]), tmp_path)
    assert dataset.fields == {"rgb.jpg": 30, "depth.png": 29, "label.txt": 27, "meta.json": 30}
    assert dataset.classes == {"label": list(CLASSES)}
    assert dataset.refused == 0


def test_numbers_as_labels_are_sorted_as_numbers(tmp_path: Path) -> None:
    table = make_source(tmp_path / "source")
    with_column(table, "number", lambda row: row["clip"][4:] + "0")
    plan = plan_of(table, labels=["number"])
    assert plan.classes["label"] == [str(10 * n) for n in range(10)]
    assert [sample.label for sample in plan.samples[:10]] == list(range(10))


def test_given_classes_are_an_order_for_names_and_for_indices(tmp_path: Path) -> None:
    table = make_source(tmp_path / "source")
    with_column(table, "number", lambda row: str(CLASSES.index(row["class"])))
    turned = ["spoon", "cup", "plate", "fork"]
    by_name = plan_of(table, labels=["class"], classes=turned)
    assert by_name.classes["label"] == turned
    assert [sample.label for sample in by_name.samples[:3]] == [1, 2, 0]
    assert [sample.label for sample in plan_of(table, labels=["number"], classes=turned).samples[:3]] == [0, 1, 2]


FILES = {"a/003": "said.txt", "a/005": "OTHER.TXT"}


def test_text_is_a_caption_or_a_file(tmp_path: Path) -> None:
    table = make_source(tmp_path / "source", 10)
    with_column(table, "said", lambda row: FILES.get(row["id"], row["caption"]))
    (table.parent / "said.txt").write_text("from a file")
    (table.parent / "OTHER.TXT").write_text("from another")
    plan = plan_of(table, fields={"text": "said"})
    texts = {sample.key: sample.read()["text.txt"].decode() for sample in plan.samples}
    assert texts["a-003"] == "from a file"
    assert texts["a-005"] == "from another"
    assert texts["a-004"] == "a thing, number 4"


def test_without_an_id_the_first_file_names_the_sample(tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text("photo,map\nx/1.jpg,y/1.png\nx/2.jpg,y/2.png\n")
    for n in (1, 2):
        for path, data in ((f"x/{n}.jpg", jpeg(n)), (f"y/{n}.png", depth_map(n))):
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_bytes(data)
    fields = {"rgb": "photo", "depth": "map"}
    assert [sample.key for sample in manifest.plan(table, fields).samples] == ["x-1", "x-2"]
    assert [sample.key for sample in manifest.plan(table, fields, key="no {photo}").samples] == [
        safe_key("no x/1.jpg"),
        safe_key("no x/2.jpg"),
    ]


def test_absolute_paths_are_taken_as_meant_and_relative_ones_stay_inside(source: Path, tmp_path: Path) -> None:
    table = tmp_path / "index.csv"
    outside = source.parent / "photos/a/001.jpg"
    relative = os.path.relpath(outside, tmp_path)
    rows = [str(outside), relative, f"sub/../{relative}", "..", "../index.csv/x.jpg", "/", "."]
    table.write_text("\n".join(["photo", *rows]))
    plan = manifest.plan(table, {"rgb": "photo"})
    assert [sample.files["rgb.jpg"] for sample in plan.samples] == [str(outside)]
    assert sum("is outside the folder of the table" in fault.reason for fault in plan.refused) == 4


@pytest.mark.parametrize(
    "template", ["{id.__class__}", "{id[0]}", "{id!r}", "{id:>9}", "{nothing}", "{}", "{0}", "{id", "photos/id.jpg"]
)
def test_templates_hold_whole_column_names_only(source: Path, template: str) -> None:
    with pytest.raises(UserError, match=r"^field rgb: "):
        plan_of(source, fields={"rgb": template})


def test_a_column_with_a_dot_is_a_name_and_no_attribute(tmp_path: Path) -> None:
    table = tmp_path / "index.csv"
    table.write_text("photo,photo.upper\nx.jpg,y\n")
    (tmp_path / "y.jpg").write_bytes(jpeg(0))
    (sample,) = manifest.plan(table, {"rgb": "{photo.upper}.jpg"}).samples
    assert sample.files == {"rgb.jpg": str(tmp_path / "y.jpg")}


def test_tables_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    cases = {"a.csv": b"", "b.csv": b"id\n", "c.csv": b"id,id\n1,2\n", "d.csv": b"id\n\xff\n", "e.jsonl": b"1\n"}
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=name):
            manifest.plan(tmp_path / name, {"text": "id"})
    with pytest.raises(UserError, match=r"none\.csv: No such file"):
        manifest.plan(tmp_path / "none.csv", {"text": "id"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["kind"]}, "no column `kind`"),
        ({"labels": ["class", "class"]}, None),
        ({"labels": ["class", "room", "room"]}, "names must be unique"),
        ({"labels": [], "classes": CLASSES}, "there is no label column"),
        ({"group": "scene"}, "is neither a column nor contains one"),
        ({"split": "{part}"}, "no column `part`"),
        ({"fields": {}}, "no fields"),
    ],
)
def test_options_that_make_no_sense_are_told(source: Path, options: dict[str, Any], message: str | None) -> None:
    if message is None:
        assert list(plan_of(source, **options).classes) == ["label", "class"]
    else:
        with pytest.raises(UserError, match=message):
            plan_of(source, **options)


# Names.


def test_keys_are_safe_and_two_sources_of_one_key_are_an_error(tmp_path: Path) -> None:
    assert safe_key("s1/a_b-c/001") == "s1-a_b-c-001"
    assert re.fullmatch(r"s1-a_b_c-001-[0-9a-f]{16}", safe_key("s1/a b.c/001"))
    long = "x/" * 200
    assert len(safe_key(long)) == 64
    assert safe_key(long) != safe_key(long + "y")
    table = tmp_path / "index.csv"
    table.write_text("id,text\na/b,one\na-b,two\n")
    with pytest.raises(UserError, match=r"`a/b` and `a-b` both have the key `a-b`.*Rename or remove one"):
        manifest.plan(table, {"text": "text"})


def test_names_that_differ_only_in_what_a_key_cannot_hold_stay_apart(tmp_path: Path) -> None:
    names = ["猫/000", "犬/000", "x/a b", "x/a_b"]
    for number, name in enumerate(names):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / f"{name}.jpg").write_bytes(jpeg(number))
    plan = folders.plan(tmp_path, {"rgb": "photos"}, label_from="parent")
    assert plan.refused == []
    keys = {sample.source: sample.key for sample in plan.samples}
    assert set(keys) == set(names)
    assert len(set(keys.values())) == 4
    assert keys["x/a_b"] == "x-a_b"
    assert all(re.fullmatch(r"[\w-]{1,64}", key, re.ASCII) for key in keys.values())


@pytest.mark.parametrize("name", ["index.jsonl", "INDEX.JSONL", "index.NDJSON"])
def test_a_gap_in_a_table_of_json_lines_is_no_value(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text('{"id": "a", "label": "cat", "text": "one"}\n{"id": "b", "label": NaN, "text": "two"}\n')
    plan = manifest.plan(path, {"text": "text"}, labels=["label"])
    assert plan.classes == {"label": ["cat"]}
    assert [sample.label for sample in plan.samples] == [0, None]


def test_long_names_still_fit_in_a_tar(tmp_path: Path) -> None:
    table = tmp_path / "index.csv"
    table.write_text("id,note\n" + "".join(f"{'ü' * 150}{n},word {n}\n" for n in range(4)))
    dataset = pack(manifest.plan(table, {"text": "note"}), tmp_path)
    keys = {sample["__key__"] for split in dataset.splits for sample in samples_in(tmp_path, split)}
    assert len(keys) == 4
    assert {len(key) for key in keys} == {64}


def test_fields_and_suffixes_make_members() -> None:
    assert member_name("rgb", "x/y.JPEG") == "rgb.jpg"
    assert member_name("emg", "x.npy") == "emg.npy"
    wrong = [("rgb", "x.bmp"), ("depth", "x.jpg"), ("rgb", "x"), ("label", "x.txt"), ("RGB", "x.jpg"), ("a.b", "x.jpg")]
    pickles = [("emg", "x.pkl"), ("emg", "x.PT"), ("a" * 40, "x.jpg")]
    for field, path in wrong + pickles:
        with pytest.raises(ValueError, match=r"expected|use a lower-case word|never packed"):
            member_name(field, path)


def two_tables(folder: Path) -> tuple[Path, Path]:
    """12 photos of classes a and b, 9 in train; 5 sounds of a and b, each of one split; and one photo of class c."""
    (folder / "photos").mkdir(parents=True)
    (folder / "sounds").mkdir()
    rows = [["id", "class", "split"]]
    for n in range(13):
        (folder / f"photos/{n}.jpg").write_bytes(jpeg(n))
        rows.append([str(n), "c" if n == 12 else "ab"[n % 2], "train" if n % 12 < 9 else "test"])
    with (folder / "photos.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    rows = [["file", "class", "split"]]
    for name, kind, split in (("a0", "a", "train"), ("a1", "a", "train"), ("a2", "a", "test"), ("b0", "b", "train"),
                              ("b1", "b", "test")):  # fmt: skip
        (folder / f"sounds/{name}.wav").write_bytes(wav(50 + int(name[1]) + (10 if kind == "b" else 0)))
        rows.append([f"{name}.wav", kind, split])
    with (folder / "sounds/list.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "photos.csv", folder / "sounds/list.csv"


def test_pairs_by_class_stay_in_their_split_and_are_dealt_evenly(tmp_path: Path) -> None:
    photos, sounds = two_tables(tmp_path)

    def pairs(seed: int) -> dict[str, str]:
        fields = {"rgb": "photos/{id}.jpg", "audio": "partner.file"}
        plan = manifest.plan(photos, fields, ["class"], split="split", partners=sounds, seed=seed)
        assert [fault.reason for fault in plan.refused] == ["class `c` in split `train` has no partner in list.csv"]
        assert pack(plan, tmp_path / f"packed{seed}", workers=1, max_refused=0.5).samples("train") == 9
        return {sample.key: Path(sample.files["audio.wav"]).stem for sample in plan.samples}

    one = pairs(0)
    train = {key: sound for key, sound in one.items() if int(key) < 9}
    assert sorted(train.values()).count("b0") == 4
    assert {sorted(train.values()).count(name) for name in ("a0", "a1")} == {2, 3}
    assert {sound for key, sound in one.items() if int(key) >= 9} == {"a2", "b1"}
    assert one == pairs(0)
    assert any(pairs(seed) != one for seed in range(1, 6))


def test_partners_without_class_or_split_are_told(tmp_path: Path) -> None:
    photos, sounds = two_tables(tmp_path)
    with pytest.raises(UserError, match="partners: rows are paired by class and split"):
        manifest.plan(photos, {"rgb": "photos/{id}.jpg"}, ["class"], partners=sounds)
    sounds.write_text(sounds.read_text().replace("split", "part", 1))
    with pytest.raises(UserError, match=r"list.csv: there is no column `split`, which both tables must have"):
        manifest.plan(photos, {"rgb": "photos/{id}.jpg"}, ["class"], split="split", partners=sounds)


def test_fields_are_given_as_name_and_source() -> None:
    assert parse_fields(["rgb=photos/{id}.jpg", "text=a=b"]) == {"rgb": "photos/{id}.jpg", "text": "a=b"}
    for given in (["rgb"], ["=x"], ["rgb="], ["rgb=a", "rgb=b"]):
        with pytest.raises(UserError, match="--field"):
            parse_fields(given)


# The recipes `folders` and `tabletop`.


def write_tree(root: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(depth_map(number) if name.startswith("maps") else jpeg(number))


def test_folders_are_matched_by_path_without_suffix(tmp_path: Path) -> None:
    names = [f"{kind}/{split}/{c}/{n}{suffix}" for kind, suffix in (("photos", ".JPG"), ("maps", ".png"))
             for split in ("train", "test") for c in ("cat", "dog") for n in (1, 2)]  # fmt: skip
    bad = ["photos/train/cat/7.jpg", "maps/train/dog/8.png", "photos/more/cat/9.jpg", "maps/more/cat/9.png",
           "photos/train/x.jpg", "maps/train/x.png", "photos/test/cat/1.png", "photos/.DS_Store"]  # fmt: skip
    write_tree(tmp_path, names + bad)
    fields = {"rgb": "photos", "depth": "maps"}
    plan = folders.plan(tmp_path, fields, "parent", "top", group=r"^\w+/\w+")
    assert {fault.key: fault.reason.split(":")[0] for fault in plan.refused} == {
        "train-cat-7": "its depth is missing",
        "train-dog-8": "its rgb is missing",
        "more-cat-9": "no split",
        "train-x": "no label",
        "test-cat-1": "its rgb is ambiguous",
    }
    dataset = pack(plan, tmp_path / "out", max_refused=1.0)
    assert dataset.classes == {"label": ["cat", "dog"]}
    assert dataset.fields == dict.fromkeys(["depth.png", "label.txt", "meta.json", "rgb.jpg"], 7)
    for split in ("train", "test"):
        for sample in samples_in(tmp_path / "out", split):
            meta = json.loads(sample["meta.json"])
            name = meta["source"]
            assert name.startswith(split)
            assert meta["group"] == name[: name.rindex("/")]
            assert sample["label.txt"].decode() == str(["cat", "dog"].index(name.split("/")[1]))
            assert sample["rgb.jpg"] == (tmp_path / f"photos/{name}.JPG").read_bytes()
            assert sample["depth.png"] == (tmp_path / f"maps/{name}.png").read_bytes()


def test_names_match_in_any_normal_form_and_files_of_systems_are_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    left = ["photos/Thumbs.db", "photos/hühner/._é.jpg", "maps/@eaDir/é.png/a.jpg", "maps/__MACOSX/é.png"]
    left.append("maps/desktop.ini")
    write_tree(tmp_path, [normalize("NFC", "photos/hühner/é.jpg"), normalize("NFD", "maps/hühner/é.png"), *left])
    plan = folders.plan(tmp_path, {"rgb": "photos", "depth": "maps"}, "parent", group="hühner")
    assert not plan.refused
    (sample,) = plan.samples
    assert (plan.classes["label"], sample.source, sample.group) == (["hühner"], "hühner/é", "hühner")
    assert caplog.text.count("skipped 5 operating-system files or folders") == 1
    other = tmp_path / "other"
    write_tree(other, [normalize("NFD", "photos/hühner/é.jpg")])
    assert folders.plan(other, {"rgb": "photos"}).samples[0].key == sample.key


def test_tables_match_in_any_normal_form(tmp_path: Path) -> None:
    write_tree(tmp_path, [normalize("NFD", "photos/é.jpg"), normalize("NFC", "photos/ü.jpg")])
    rows = [("NFC", "photos/é.jpg", "NFD", "Käse"), ("NFD", "photos/ü.jpg", "NFC", "Käse")]
    lines = [normalize("NFD", "größe,label"), *(f"{normalize(a, x)},{normalize(b, y)}" for a, x, b, y in rows)]
    (tmp_path / "table.csv").write_text("\n".join(lines), encoding="utf-8")
    plan = manifest.plan(tmp_path / "table.csv", {"rgb": "größe"}, labels=["label"])
    assert not plan.refused
    assert plan.classes == {"label": ["Käse"]}
    assert [sample.label for sample in plan.samples] == [0, 0]
    assert len({sample.key for sample in plan.samples}) == 2


def test_formats_of_the_field_are_packed_and_read(tmp_path: Path) -> None:
    millimetres = np.random.default_rng(0).integers(1, 9000, (24, 32)).astype(np.uint16)
    classes = np.random.default_rng(1).integers(0, 3, (24, 32)).astype(np.uint8)
    mask = Image.fromarray(classes, mode="P")
    mask.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * 759)
    for folder in ("maps", "masks", "sounds"):
        (tmp_path / folder).mkdir()
    for number in range(4):
        cv2.imwrite(str(tmp_path / "maps" / f"{number}.tif"), millimetres + number)
        mask.save(tmp_path / "masks" / f"{number}.png")
        noise = np.random.default_rng(number).normal(0, 0.1, 8000)
        (tmp_path / "sounds" / f"{number}.opus").write_bytes(sound_file(noise, "OGG", "OPUS"))
    plan = folders.plan(tmp_path, {"depth": "maps", "mask": "masks", "audio": "sounds"})
    dataset = pack(add_masks(plan, ["mask=background,plane,bicycle"]), tmp_path / "out")
    assert dataset.fields == {"audio.ogg": 4, "depth.tiff": 4, "mask.png": 4, "meta.json": 4}
    assert check(tmp_path / "out").faults == []
    task = Task("mask", 3, (0, 1, 2))
    for sample in (one for split in dataset.splits for one in samples_in(tmp_path / "out", split)):
        number = int(sample["__key__"])
        assert np.allclose(Depth().decode(sample["depth.tiff"], {}).metres, (millimetres + number) / 1000)
        assert np.array_equal(task.read_mask(sample), classes)


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write_tree(tmp_path, ["elsewhere/1.jpg", "elsewhere/more/2.jpg", "root/photos/dog/3.jpg"])
    photos = tmp_path / "root/photos"
    (photos / "cat").symlink_to(tmp_path / "elsewhere")
    (photos / "wolf").symlink_to(photos / "dog")
    for name, target in (("dog/up", photos), ("dog/root", tmp_path), ("self", "self"), ("dog/gone.jpg", "nowhere.jpg")):
        (photos / name).symlink_to(target)
    plan = folders.plan(tmp_path / "root", {"rgb": "photos"}, "parent")
    found = {sample.source for sample in plan.samples}
    assert {"cat/1", "cat/more/2", "dog/3", "wolf/3"} <= found
    assert not any("up/" in source or "root/root" in source for source in found)
    refused = {fault.key: fault.reason for fault in plan.refused}
    assert refused["dog-gone"] == refused["wolf-gone"] == "no such file"


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ("parent", "a/b"),
        (r"^(\w)/", "a"),
        ("b/.", "b/1"),
        (r"(\w)/\w/(\d)", "a/1"),
        (r"(\w)/\w/(x)?(\d)", "a/1"),
        ("b/(x)?.", "b/1"),
        (None, "a-b-1"),
    ],
)
def test_a_group_is_the_folder_or_what_an_expression_finds(tmp_path: Path, group: str, expected: str) -> None:
    write_tree(tmp_path, ["photos/a/b/1.jpg"])
    (sample,) = folders.plan(tmp_path, {"rgb": "photos"}, group=group).samples
    assert sample.group == expected


def test_folders_that_make_no_sense_are_told(tmp_path: Path) -> None:
    write_tree(tmp_path, ["photos/1.jpg"])
    for options, message in (
        ({"fields": {"rgb": "fotos"}}, "the folder does not exist or is empty"),
        ({"fields": {}}, "no fields"),
        ({"fields": {"rgb": "photos"}, "group": "("}, "neither `parent` nor a regular expression"),
    ):
        with pytest.raises(UserError, match=message):
            folders.plan(tmp_path, **options)  # type: ignore[arg-type]
    write_tree(tmp_path, ["photos/clip2.jpg"])
    assert folders.plan(tmp_path, {"rgb": "photos"}, group="clip").refused[0].reason.startswith("no group")


def test_the_pattern_of_the_tutorial_separates_clips_of_different_classes(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs/tutorial-laptop.md").read_text()
    pattern = re.findall(r"`--group '([^']+)'`", text)[0]
    write_tree(tmp_path, [f"photos/{name}/clip3_{frame}.jpg" for name in ("cup", "plate") for frame in (1, 2)])
    groups = [sample.group for sample in folders.plan(tmp_path, {"rgb": "photos"}, "parent", group=pattern).samples]
    assert groups == ["cup/clip3", "cup/clip3", "plate/clip3", "plate/clip3"]


def test_a_pattern_that_matches_no_path_is_told(tmp_path: Path) -> None:
    write_tree(tmp_path, ["photos/cup/1.jpg", "photos/cup/2.jpg"])
    message = r"all 2 samples were rejected: the pattern of --group, `\.jpg`, matches no path, e\.g\. `cup/1`\. "
    with pytest.raises(UserError, match=message):
        folders.plan(tmp_path, {"rgb": "photos"}, group=".jpg")


CAMERA = {"fx": 500.0, "fy": 510.0, "cx": 319.5, "cy": 239.5}


def stub_scene(seed: int, index: int, size: int = 96) -> dict[str, bytes]:
    return {
        "rgb.jpg": jpeg(seed + index),
        "depth.png": depth_map(index),
        "audio.wav": wav(),
        "label.txt": b"99" if index == 5 else str(index % 2).encode(),
        "meta.json": json.dumps({"intrinsics": CAMERA, "group": "wrong"}).encode(),
    }


def test_scenes_are_made_while_they_are_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = type(sys)("scenes")
    scenes.scene, scenes.CLASSES, scenes.FIELD_UNITS = stub_scene, ("ball", "box"), {"rgb.jpg": "sRGB"}  # type: ignore[attr-defined]
    monkeypatch.setattr("pipeline.packing.synthetic.scenes", scenes, raising=False)
    monkeypatch.setitem(sys.modules, "pipeline.packing.synthetic.scenes", scenes)
    dataset = pack(tabletop.plan(20, seed=3, size=32), tmp_path, max_refused=0.05)
    assert sum(map(dataset.samples, dataset.splits)) == 19
    assert dataset.classes == {
        "label": ["ball", "box"],
        "mask": ["background", "object"],
        "classes": ["background", "ball", "box"],
    }
    assert dataset.masks == {"mask": [0, 255], "classes": [0, 1, 2]}
    lines = (tmp_path / "refused.jsonl").read_text()
    assert "label 99 is out of range" in lines
    for sample in samples_in(tmp_path, "test"):
        meta = json.loads(sample["meta.json"])
        assert meta["intrinsics"] == CAMERA
        assert meta["group"] == f"tabletop-3-{meta['index']}"
        assert sample["rgb.jpg"] == jpeg(3 + meta["index"])
    with pytest.raises(UserError, match="the minimum values are 1"):
        tabletop.plan(0)


def test_fields_become_masks_with_classes_and_values() -> None:
    plan = Plan("manifest", "own", {"fields": {"mask": "m", "parts": "p"}}, [], classes={"label": ["a"]})
    add_masks(plan, ["mask=background:0,hand:255", "parts=floor, wall"])
    assert plan.classes == {"label": ["a"], "mask": ["background", "hand"], "parts": ["floor", "wall"]}
    assert plan.masks == {"mask": [0, 255], "parts": [0, 1]}
    assert plan.options["masks"] == plan.masks  # another packing, if they change


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("mask", "expected a field and its classes"),
        ("mask=a:0,b:70000", "from 0 to 65535"),
        ("mask=a:1,b:1", "Names and values must be unique"),
        ("mask=a,a", "Names and values must be unique"),
        ("mask=a:-1", "from 0 to 65535"),
        ("other=a,b", "other is not a field"),
    ],
)
def test_masks_that_cannot_be_are_refused(given: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        add_masks(Plan("manifest", "own", {"fields": {"mask": "m"}}, []), [given])


def metas(out: Path) -> dict[str, dict[str, Any]]:
    found = [json.loads(sample["meta.json"]) for split in ("train", "test") for sample in samples_in(out, split)]
    return {meta["source"]: meta for meta in found}


def test_one_camera_for_a_whole_set(tmp_path: Path) -> None:
    plan = plan_of(make_source(tmp_path / "source"))
    options = dict(plan.options)
    add_camera(plan, "500,510,319.5,239.5,640,480", "0,2,-1")
    assert plan.options != options  # another packing
    pack(plan, tmp_path / "out")
    found = metas(tmp_path / "out")
    assert len(found) == 30
    for meta in found.values():
        assert meta["intrinsics"] == CAMERA | {"width": 640, "height": 480}
        assert meta["gravity"] == [0, 2, -1]
    depth = Depth().decode(samples_in(tmp_path / "out", "test")[0]["depth.png"], meta)
    assert depth.intrinsics[0] == pytest.approx(500 * 16 / 640)  # the maps are 16 pixels wide


@pytest.mark.parametrize(
    ("intrinsics", "gravity"),
    [("500", None), ("1,2,3,4,5", None), ("1,2,3,4,5,6,7", None), ("0,1,2,3", None), ("a,b,c,d", None),
     ("nan,1,1,1", None), ("1,1,1,1,0,5", None), (None, "0,0,0"), (None, "0,1"), (None, "down")],
)  # fmt: skip
def test_a_camera_that_is_none_is_told(intrinsics: str | None, gravity: str | None) -> None:
    with pytest.raises(UserError, match=r"--intrinsics fx,fy,cx,cy.*--gravity x,y,z"):
        add_camera(Plan("manifest", "own", {}, []), intrinsics, gravity)


def test_samples_may_bring_a_camera_of_their_own(tmp_path: Path) -> None:
    table = make_source(tmp_path / "source")
    own = {"intrinsics": CAMERA, "group": "wrong", "labels": {"room": 99, "nowhere": 1}, "lens": "wide"}
    for name, content in (("own", own), ("bad", {"intrinsics": [1, 2]})):
        (tmp_path / f"source/{name}.json").write_text(json.dumps(content))
    with_column(table, "about", lambda row: {"a/000": "own.json", "a/001": "bad.json"}.get(row["id"], ""))
    plan = add_camera(plan_of(table, fields=FIELDS | {"meta": "about"}), "1,2,3,4", None)
    pack(plan, tmp_path / "out")
    found = metas(tmp_path / "out")
    assert found["a/000"]["intrinsics"] == CAMERA
    assert found["a/000"]["lens"] == "wide"
    assert (found["a/000"]["group"], found["a/000"]["labels"]) == ("clip0", {"room": 0})
    assert found["a/002"]["intrinsics"] == {"fx": 1, "fy": 2, "cx": 3, "cy": 4}
    assert "a/001" not in found
    assert "fx, fy, cx, cy" in refusals(tmp_path / "out")["bad.json"]
    assert check(tmp_path / "out").faults == []
