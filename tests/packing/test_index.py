"""`wcord index`: splits partition the samples, groups stay whole, shards stay as they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_shards import captioned, hugging_face, img2dataset, keys_by_webdataset, plain_tar, shard_writer
from shapes_dataset import CLASSES

from modalities import Text
from pipeline.common.errors import UserError
from pipeline.data.dataset import MANIFEST
from pipeline.data.manifest import load_dataset
from pipeline.data.skipped import Skipped, append_skipped
from pipeline.data.source import open_split
from pipeline.data.stream import EvalStream, loader
from pipeline.data.views import View
from pipeline.inference.inputs import find_inputs
from pipeline.packing import index as module
from pipeline.packing.check import check
from pipeline.packing.index import index
from pipeline.packing.recheck import recheck

TEXT = View(Text(), 16)


def keys(folder: Path, split: str, label: str = "label") -> list[str]:
    source = open_split(folder, split, label)
    batches = loader(EvalStream(source, {"student": TEXT}, batch=7), 0, torch.device("cpu"))
    found = [key for batch in batches for key in batch["key"]]
    assert len(found) == source.samples
    return found


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """60 samples in 15 clips and 4 shards, a clip over the border of two."""
    return shard_writer(tmp_path / "shards", map(captioned, range(60)), maxcount=18)


@pytest.mark.parametrize("options", [{}, {"group": "json:clip"}, {"hashed": True}])
@pytest.mark.parametrize("splits", [{"test": "0.2"}, {"test": "0.2", "val": "0.3"}])
def test_shares_partition_the_samples(
    shards: list[Path], tmp_path: Path, splits: Mapping[str, str], options: Mapping[str, Any]
) -> None:
    index([str(tmp_path / "shards")], tmp_path / "index", splits=splits, **options)
    found = {split: keys(tmp_path / "index", split) for split in ("train", *splits)}
    together = [key for own in found.values() for key in own]
    assert sorted(together) == sorted(keys_by_webdataset(shards))
    assert all(found.values())
    assert check(tmp_path / "index").faults == []
    assert found["test"] == [key for key in keys_by_webdataset(shards) if key in set(found["test"])]  # in their order
    if "group" in options:
        clips = {split: {int(key) // 4 for key in own} for split, own in found.items()}
        assert sum(map(len, clips.values())) == 15


def test_whole_shards_by_a_pattern_or_by_their_names(shards: list[Path], tmp_path: Path) -> None:
    index([str(tmp_path / "shards")], tmp_path / "a", splits={"test": f"{tmp_path}/shards/{{00002..00003}}.tar"})
    assert keys(tmp_path / "a", "test") == keys_by_webdataset(shards[2:])
    assert keys(tmp_path / "a", "train") == keys_by_webdataset(shards[:2])
    folder = hugging_face(tmp_path / "hub", {"train": [5, 4], "test": [3]})
    found = index([str(folder)], tmp_path / "b")
    assert {split: found.samples(split) for split in found.splits} == {"train": 9, "test": 3}


def test_shards_stay_and_only_the_index_is_written(shards: list[Path], tmp_path: Path) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "shards").iterdir()}
    index([str(tmp_path / "shards")], tmp_path / "index", splits={"test": "0.2"}, hashed=True)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "shards").iterdir()} == before
    size = sum(path.stat().st_size for path in (tmp_path / "index").iterdir())
    assert size < 0.1 * sum(path.stat().st_size for path in shards)
    dataset = load_dataset(tmp_path / "index")
    assert all(len(shard.sha256) == 64 for own in dataset.splits.values() for shard in own)
    assert {shard.url for shard in dataset.splits["train"]} == set(map(str, shards))


def test_classes_fields_and_name_are_kept(tmp_path: Path) -> None:
    samples = [(f"{n}", {"left.jpg": captioned(n)[1]["jpg"], "json": captioned(n)[1]["json"]}) for n in range(6)]
    plain_tar(tmp_path / "shards" / "0.tar", samples)
    fields = {"rgb": ["left.jpg"]}
    index([str(tmp_path / "shards")], tmp_path / "index", label="json:labels.kind", fields=fields, name="mine")
    dataset = load_dataset(tmp_path / "index")
    assert dataset.name == "mine"
    assert dataset.fields == {"json": 6, "rgb.jpg": 6}
    assert dataset.classes == {"json:labels.kind": sorted(CLASSES)}


def test_the_same_again_changes_nothing_and_a_changed_shard_is_noticed(shards: list[Path], tmp_path: Path) -> None:
    arguments: Any = ([str(tmp_path / "shards")], tmp_path / "index")
    first = index(*arguments, splits={"test": "0.2"})
    assert index(*arguments, splits={"test": "0.2"}) == first
    plain_tar(shards[3], [captioned(n) for n in range(90, 99)])
    with pytest.raises(UserError, match=r"00003\.tar: shard has .* run the same `wcord index` again to count it\."):
        open_split(tmp_path / "index", "train", "label")
    assert index(*arguments, splits={"test": "0.2"}) != first
    assert sorted(keys(tmp_path / "index", "train") + keys(tmp_path / "index", "test")) == sorted(
        keys_by_webdataset(shards)
    )
    data = bytearray(shards[3].read_bytes())
    data[-1] = 1
    shards[3].write_bytes(data)  # of the same size
    message = r"00003\.tar: the shard has changed since it was indexed. Restore it, or run the same `wcord index` again"
    with pytest.raises(UserError, match=message):
        open_split(tmp_path / "index", "train", "label")
    shards[3].unlink()
    with pytest.raises(UserError, match=r"00003\.tar: shard is missing\. Restore it, or run the same `wcord index`"):
        open_split(tmp_path / "index", "train", "label")


def test_a_hashed_shard_is_known_by_its_content(shards: list[Path], tmp_path: Path) -> None:
    index([str(tmp_path / "shards")], tmp_path / "index", hashed=True)
    shutil.copy2(shards[0], tmp_path / "copy.tar")
    shards[0].unlink()
    shutil.copyfile(tmp_path / "copy.tar", shards[0])  # another time, the same bytes
    assert len(keys(tmp_path / "index", "train")) == 60
    data = bytearray(shards[0].read_bytes())
    data[data.index(b"number 0") + 7] = ord("9")
    shards[0].write_bytes(data)
    with pytest.raises(UserError, match=r"00000\.tar: its SHA-256 differs from the one in dataset\.json"):
        keys(tmp_path / "index", "train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splits": {"tset": "0.1"}}, r"--split tset: unknown; choose from val, test"),
        ({"splits": {"train": "0.1"}}, r"--split train: unknown"),
        ({"splits": {"test": "1.5"}}, r"--split: a fraction must be between 0 and 1"),
        ({"splits": {"test": "0"}}, r"--split: a fraction must be between 0 and 1"),
        ({"splits": {"test": "nan"}}, r"--split: a fraction must be between 0 and 1"),
        ({"splits": {"test": "0.6", "val": "0.4"}}, r"--split: no samples are left for training"),
        ({"splits": {"test": "0.000001"}}, r"split `test` would be empty"),
        ({"splits": {"test": "{shards}/*.tar"}}, r"split `train` would be empty"),
        ({"splits": {"test": "{shards}/9.tar"}}, r"9\.tar: not found"),
        ({"splits": {"test": "{shards}/../elsewhere.tar"}}, r"elsewhere\.tar is not one of the indexed shards"),
        (
            {"splits": {"test": "0.1", "val": "{shards}/00000.tar"}},
            r"--split: use either fractions of the samples or",
        ),
        ({"group": "json:clip"}, r"--group: requires a split by fraction"),
    ],
)
def test_splits_that_cannot_be(shards: list[Path], tmp_path: Path, options: Any, message: str) -> None:
    plain_tar(tmp_path / "elsewhere.tar", [captioned(0)])
    folder = tmp_path / "shards"
    if "splits" in options:
        options = options | {"splits": {k: v.format(shards=folder) for k, v in options["splits"].items()}}
    with pytest.raises(UserError, match=message):
        index([str(folder)], tmp_path / "index", **options)
    assert not (tmp_path / "index" / MANIFEST).exists()


def test_a_folder_that_holds_shards_is_not_written_to(shards: list[Path], tmp_path: Path, shapes: Path) -> None:
    with pytest.raises(UserError, match=r"the folder already contains shards\. Choose another folder for the index"):
        index([str(tmp_path / "shards")], tmp_path / "shards")
    packed = shutil.copytree(shapes, tmp_path / "packed")
    before = (packed / MANIFEST).read_bytes()
    with pytest.raises(UserError, match=r"the folder already contains shards"):
        index([str(tmp_path / "shards")], packed)
    assert (packed / MANIFEST).read_bytes() == before


def test_side_cars_in_its_folder_do_not_hinder(shards: list[Path], tmp_path: Path) -> None:
    first = index([str(tmp_path / "shards")], tmp_path / "index")
    (tmp_path / "index" / "00000.teacher.tar").touch()
    assert index([str(tmp_path / "shards")], tmp_path / "index") == first


def test_predict_and_check_listed_see_every_sample_of_a_divided_shard(shards: list[Path], tmp_path: Path) -> None:
    index([str(tmp_path / "shards")], tmp_path / "index", splits={"test": "0.3"})
    assert sorted(one.key for one in find_inputs([tmp_path / "index"], TEXT)) == sorted(keys_by_webdataset(shards))
    assert [one.key for one in find_inputs([shards[0]], TEXT)] == keys_by_webdataset(shards[:1])
    trained = keys(tmp_path / "index", "train")
    third = [key for key in trained if key in keys_by_webdataset(shards[:1])][3]
    append_skipped(tmp_path / "skipped.jsonl", [Skipped("00000.tar", 3, third, "rgb.jpg", "was broken", False)])
    report = recheck(tmp_path / "index", tmp_path / "skipped.jsonl")
    assert report.faults == []
    assert report.notes == [f"00000.tar: {third}: readable now; before: was broken"]


def test_damage_is_found_by_check_and_never_to_be_deleted(tmp_path: Path) -> None:
    paths = img2dataset(tmp_path / "shards", [6, 6], lacking={2})
    index([str(tmp_path / "shards")], tmp_path / "index")
    paths[1].write_bytes(paths[1].read_bytes()[:-3000])
    report = check(tmp_path / "index")
    assert "1 of 12 samples have no text.txt, the first one is 00000.tar: 000000002" in report.notes
    assert any(line.startswith("00001.tar: ") for line in report.faults)
    assert not any("delete" in line or "wcord pack" in line for line in report.faults)


def test_the_manifest_is_plain(shards: list[Path], tmp_path: Path) -> None:
    index([str(tmp_path / "shards")], tmp_path / "index", splits={"test": "0.2"}, group="json:clip")
    about = json.loads((tmp_path / "index" / MANIFEST).read_text())
    assert about["division"] == {"shares": {"test": 0.2}, "group": "json:clip"}
    assert about["extensions"] == {"cls": 60, "jpg": 60, "json": 60, "txt": 60}
    assert module.SPLITS == ("train", "val", "test")


def rare(number: int) -> tuple[str, dict[str, bytes]]:
    """A sample of class `call` if its number is 7, else of `wave`, and a clip of its own."""
    name = "call" if number == 7 else "wave"
    return f"{number:03d}", {
        "txt": b"a gesture",
        "json": json.dumps({"class": name, "clip": f"clip{number}"}).encode(),
    }


@pytest.mark.parametrize("whole", [False, True])
def test_classes_without_test_samples_are_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture, whole: bool) -> None:
    """`call` is in the first shard, and the hash of its clip puts it into train."""
    shard_writer(tmp_path / "shards", map(rare, range(40)), maxcount=20)
    splits = {"test": f"{tmp_path}/shards/00001.tar" if whole else "0.2"}
    with caplog.at_level("INFO"):
        index(
            [str(tmp_path / "shards")],
            tmp_path / "index",
            splits=splits,
            label="json:class",
            group="" if whole else "json:clip",
        )
    line = "classes of json:class without test samples: call"
    assert f"note: {line}" in caplog.messages
    assert line in check(tmp_path / "index").notes


def test_classes_in_every_split_or_in_none_are_not_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = [rare(number) for number in range(40) if number != 7]
    unlabelled = [(f"{number}", {"txt": b"a gesture"}) for number in range(50, 60)]
    plain_tar(tmp_path / "shards/a.tar", samples)
    plain_tar(tmp_path / "shards/b.tar", unlabelled)
    with caplog.at_level("INFO"):
        index([str(tmp_path / "shards")], tmp_path / "index", splits={"test": "0.2"}, label="json:class")
        index(
            [str(tmp_path / "shards")], tmp_path / "b", splits={"test": f"{tmp_path}/shards/b.tar"}, label="json:class"
        )
    assert not [message for message in caplog.messages if "without" in message]
    assert not [note for folder in ("index", "b") for note in check(tmp_path / folder).notes if "without" in note]
