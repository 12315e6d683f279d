"""Folders of the `datasets` library, written with pyarrow as the library writes them, to shards."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from sources import depth_map, jpeg, refusals, samples_in, wav

from pipeline.common.errors import UserError
from pipeline.packing.pack import pack
from pipeline.packing.recipes import huggingface

STRING = {"dtype": "string", "_type": "Value"}
FEATURES: dict[str, Any] = {
    "image": {"_type": "Image"},
    "sound": {"sampling_rate": 8000, "_type": "Audio"},
    "captions": {"feature": STRING, "_type": "List"},
    "label": {"names": ["cat", "dog"], "_type": "ClassLabel"},
    "fine": {"names": ["a", "b", "c"], "_type": "ClassLabel"},
    "clip": STRING,
}
FIELDS = {"rgb": "image", "audio": "sound", "text": "captions"}
FILE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
TYPES = {"Image": FILE, "Audio": FILE, "List": pa.list_(pa.string()), "ClassLabel": pa.int64(), "Value": pa.string()}


def row(number: int) -> dict[str, Any]:
    return {
        "image": {"bytes": jpeg(number), "path": None},
        "sound": {"bytes": wav(), "path": "/elsewhere/a.wav"},
        "captions": ["a cat", "two\nlines"],
        "label": number % 2,
        "fine": number % 3,
        "clip": f"clip{number}",
    }


def table(rows: Sequence[Mapping[str, Any]], features: Mapping[str, Any] = FEATURES) -> pa.Table:
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    fields = [(name, TYPES[feature["_type"]]) for name, feature in features.items()]
    return pa.Table.from_pylist(list(rows), pa.schema(fields, about))


def save_to_disk(folder: Path, *files: pa.Table) -> None:
    """As `Dataset.save_to_disk` with so many shards."""
    folder.mkdir(parents=True)
    names = [f"data-{n:05d}-of-{len(files):05d}.arrow" for n in range(len(files))]
    for name, rows in zip(names, files, strict=True):
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_table(rows, max_chunksize=2)
    state = {"_fingerprint": "1", "_format_columns": None, "_format_kwargs": {}, "_format_type": None}
    state |= {"_data_files": [{"filename": name} for name in names], "_output_all_columns": False, "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES, "license": ""}))


def packed(source: Path, **options: Any) -> dict[str, dict[str, Any]]:
    plan = huggingface.plan(source, **({"fields": FIELDS} | options))
    out = source.parent / "packed"
    dataset = pack(plan, out, workers=1, max_refused=0.9)
    return {s["__key__"]: s | {"split": split} for split in dataset.splits for s in samples_in(out, split)}


def check(samples: Mapping[str, Mapping[str, Any]]) -> None:
    """Three training rows and one of each other split, from `row`."""
    assert {key: s["split"] for key, s in samples.items()} == {
        "train-00000000": "train",
        "train-00000001": "train",
        "train-00000002": "train",
        "validation-00000000": "val",
        "test-00000000": "test",
    }
    one = samples["train-00000002"]
    assert (one["rgb.jpg"], one["audio.wav"], one["label.txt"]) == (jpeg(2), wav(), b"0")
    assert one["text.txt"] == b"a cat\ntwo lines"
    assert json.loads(one["meta.json"])["labels"] == {"fine": 2}


def test_what_save_to_disk_writes(tmp_path: Path) -> None:
    source = tmp_path / "set"
    save_to_disk(source / "train", table([row(0)]), table([row(1), row(2)]))
    save_to_disk(source / "validation", table([row(3)]))
    save_to_disk(source / "test", table([row(4)]))
    (source / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation", "test"]}))
    check(packed(source))
    assert huggingface.plan(source, FIELDS).classes == {"label": ["cat", "dog"], "fine": ["a", "b", "c"]}


def test_parquet(tmp_path: Path) -> None:
    data = tmp_path / "set" / "data"
    data.mkdir(parents=True)
    parquet.write_table(table(map(row, range(3))), data / "train-00000-of-00001.parquet", row_group_size=2)
    parquet.write_table(table([row(3)]), data / "validation-00000-of-00001.parquet")
    parquet.write_table(table([row(4)]), data / "test-00000-of-00001.parquet")
    check(packed(tmp_path / "set"))


def test_one_split_is_cut_by_groups_and_columns_are_found_by_type(tmp_path: Path) -> None:
    features = {name: FEATURES[name] for name in ("image", "sound", "captions", "label")} | {"who": FEATURES["label"]}
    rows = [row(n) | {"who": n // 5} for n in range(10)]
    save_to_disk(tmp_path / "set", table(rows, features))
    samples = packed(tmp_path / "set", fields=None, labels=["label"], group="who")
    assert {m for s in samples.values() for m in s if m[0] != "_"} == {
        "rgb.jpg", "audio.wav", "text.txt", "label.txt", "meta.json", "split"
    }  # fmt: skip
    by_split = {s["split"]: json.loads(s["meta.json"])["group"] for s in samples.values()}
    assert len(set(by_split.values())) == len(by_split) == 2


def test_a_row_without_a_group_is_its_own(tmp_path: Path) -> None:
    clips = ["a", None, "a", "", None]
    save_to_disk(tmp_path / "set", table([row(n) | {"clip": clip} for n, clip in enumerate(clips)]))
    groups = [sample.group for sample in huggingface.plan(tmp_path / "set", FIELDS, group="clip").samples]
    assert groups == ["a", "set-00000001", "a", "set-00000003", "set-00000004"]


def test_depth_in_a_tiff_becomes_the_same_png(tmp_path: Path) -> None:
    """The library keeps files as they are, but makes TIFFs of 16-bit arrays."""
    metres = cv2.imdecode(np.frombuffer(depth_map(0), np.uint8), cv2.IMREAD_UNCHANGED)
    tiff = cv2.imencode(".tiff", metres)[1].tobytes()
    rows = [row(0) | {"image": {"bytes": data, "path": "x"}} for data in (tiff, depth_map(1))]
    save_to_disk(tmp_path / "set", table(rows))
    samples = packed(tmp_path / "set", fields={"depth": "image"})
    found = cv2.imdecode(np.frombuffer(samples["set-00000000"]["depth.png"], np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(found, metres)
    assert samples["set-00000001"]["depth.png"] == depth_map(1)


def test_bad_cells_are_refused_and_no_other_file_is_opened(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(jpeg(0))
    cells = [{"bytes": None, "path": str(secret)}, {"bytes": b"GIF89a", "path": "a.jpg"}, {"bytes": b"", "path": None}]
    rows = [row(n) | {"image": cell} for n, cell in enumerate(cells)] + [row(n) for n in range(3, 6)]
    save_to_disk(tmp_path / "set", table(rows))
    samples = packed(tmp_path / "set", fields={"rgb": "image"})
    assert len(samples) == 3
    lines = (tmp_path / "packed" / "refused.jsonl").read_text()
    assert "image: neither file content nor text" in lines
    assert lines.count("image: unknown file format; convert the files to one that the field `rgb` supports") == 2
    assert {json.loads(line)["file"] for line in lines.splitlines()} == {
        f"data-00000-of-00001.arrow {number}" for number in range(3)
    }


def test_rows_may_lack_a_column_but_not_all(tmp_path: Path) -> None:
    rows = [row(0) | {"sound": None, "label": None}, row(1) | {"image": None, "sound": None}, row(2), row(3)]
    save_to_disk(tmp_path / "set", table(rows))
    samples = packed(tmp_path / "set", fields={"rgb": "image", "audio": "sound"})
    assert "audio.wav" not in samples["set-00000000"]
    assert "label.txt" not in samples["set-00000000"]
    assert refusals(tmp_path / "packed") == {"data-00000-of-00001.arrow 1": "all cells are empty: image, sound"}


def test_faults_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither the output of `save_to_disk`"):
        huggingface.plan(tmp_path)
    source = tmp_path / "set"
    save_to_disk(source / "train", table([row(0)]))
    with pytest.raises(UserError, match=r"no column `photo`; the columns are image, sound"):
        huggingface.plan(source / "train", {"rgb": "photo"})
    with pytest.raises(UserError, match=r"text: several columns match: captions, clip"):
        huggingface.plan(source / "train")
    save_to_disk(source / "odd", table([row(0)]))
    (source / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "odd"]}))
    with pytest.raises(UserError, match="unknown split `odd`; expected train"):
        huggingface.plan(source, FIELDS)
    (source / "dataset_dict.json").write_text(json.dumps({"splits": ["../../etc"]}))
    with pytest.raises(UserError, match=r"`../../etc` is not a file name in this folder"):
        huggingface.plan(source, FIELDS)
    save_to_disk(tmp_path / "cut", table([row(0)]))
    cut = tmp_path / "cut" / "data-00000-of-00001.arrow"
    cut.write_bytes(cut.read_bytes()[:-400])
    with pytest.raises(UserError, match="cannot be read"):
        huggingface.plan(tmp_path / "cut", FIELDS)


def test_configurations_below_each_other_are_not_mixed(tmp_path: Path) -> None:
    for name in ("full", "small"):
        (tmp_path / name / "train").mkdir(parents=True)
        parquet.write_table(table([row(0), row(1)]), tmp_path / name / "train" / "0000.parquet")
    with pytest.raises(UserError, match=r"several datasets or configurations: full, small. Pack one of them, such as"):
        huggingface.plan(tmp_path)
    assert len(huggingface.plan(tmp_path / "small", {"rgb": "image"}).samples) == 2


def test_folders_of_splits_and_partitions_are_one_configuration(tmp_path: Path) -> None:
    for folder in ("data/train", "data/test", "data/train/year=2020"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        parquet.write_table(table([row(0)]), tmp_path / folder / "0000.parquet")
    assert len(huggingface.plan(tmp_path, {"rgb": "image"}).samples) == 3
