"""Oracles: the standard library's writer and reader, and webdataset's grouping of members."""

from __future__ import annotations

import hashlib
import io
import tarfile
from itertools import product
from pathlib import Path

import pytest
from shapes_dataset import members, write_dataset
from sources import samples_in
from webdataset.tariterators import base_plus_ext, group_by_keys

from pipeline.data.dataset import MANIFEST, Layout
from pipeline.data.join import Join
from pipeline.data.manifest import load_dataset, write_shard
from pipeline.data.shard_reader import read_range
from pipeline.data.tar import TWICE, UNNAMED, group_members, read_members, split_name
from pipeline.packing.check import check

FILES = {
    "a.rgb.jpg": b"x" * 1000,
    "a.empty": b"",
    "b" * 120 + "/c.depth.png": bytes(range(256)) * 8,
    "long/" * 60 + "d.json": b"{}",
    "ünïcode.txt": b"512" * 512,
    "last.txt": b"z" * 512,
}


def packed(kind: int, names: list[str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(FILES[name]), 1.5 if kind == tarfile.PAX_FORMAT else 1
            tar.addfile(info, io.BytesIO(FILES[name]))
        for kind_of_link in (tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.LNKTYPE):
            info = tarfile.TarInfo("link")
            info.type, info.linkname = kind_of_link, "last.txt"
            tar.addfile(info)
        info = tarfile.TarInfo("after.txt")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"end"))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_reads_what_the_standard_library_wrote(kind: int) -> None:
    names = [n for n in FILES if kind != tarfile.USTAR_FORMAT or len(n) < 200]
    data = packed(kind, names)
    assert dict(read_members(io.BytesIO(data), lambda name: True)) == {n: FILES[n] for n in names} | {
        "after.txt": b"end"
    }
    some = dict(read_members(io.BytesIO(data), lambda name: name.endswith(".txt")))
    assert {name for name, content in some.items() if content is None} == set(names) - {"ünïcode.txt", "last.txt"}
    assert {name: content for name, content in some.items() if content is not None} == {
        "ünïcode.txt": FILES["ünïcode.txt"],
        "last.txt": FILES["last.txt"],
        "after.txt": b"end",
    }


def test_sizes_beyond_octal_digits_are_read() -> None:
    info = tarfile.TarInfo("big.bin")
    info.size = 1 << 36
    header = info.tobuf(format=tarfile.GNU_FORMAT)
    with pytest.raises(ValueError, match=r"big\.bin is truncated"):
        list(read_members(io.BytesIO(header + b"abc"), lambda name: True))


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_cut_anywhere_is_refused(kind: int) -> None:
    data = packed(kind, ["a.rgb.jpg", "last.txt"])
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
    end = members[-1].offset_data + 512
    for cut in range(1, end, 97):
        with pytest.raises(ValueError, match="is truncated"):
            list(read_members(io.BytesIO(data[:cut]), lambda name: True))


def test_a_damaged_header_is_refused() -> None:
    data = bytearray(packed(tarfile.USTAR_FORMAT, ["a.rgb.jpg", "last.txt"]))
    for place in (0, 130, 150, 156, 345, 400):
        spoilt = data.copy()
        spoilt[place] ^= 1
        with pytest.raises(ValueError, match=r"a header is invalid|invalid literal"):
            list(read_members(io.BytesIO(spoilt), lambda name: True))


WRITTEN = [
    ("a", {"rgb.jpg": b"x" * 1000, "label.txt": b"1", "meta.json": b"{}"}),
    ("clip/0001", {"text.txt": "ü".encode() * 300, "empty.bin": b""}),
    ("ü" * 40, {"rgb.jpg": b"y" * 9728}),
    ("b\udcff", {"depth.png": b"z" * 512}),
    ("k" * 96, {"npy": b"q" * 30000}),
]
HASHES = ["84ff92691f90", "624fe09d52d7", "e62d11e4f3d7", "287cdae6abc5", "309c4dbdee33", "059ed8b83c0d"]
"""Of the shards of the first 0 to 5 of these samples, as version 0.1 wrote them."""


@pytest.mark.parametrize("count", range(6))
def test_writes_the_bytes_of_the_standard_library_and_of_earlier_versions(count: int, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, held in WRITTEN[:count]:
            for member in sorted(held):
                info = tarfile.TarInfo(f"{key}.{member}")
                info.size = len(held[member])
                tar.addfile(info, io.BytesIO(held[member]))
    shard = write_shard(tmp_path / "a.tar", WRITTEN[:count])
    assert (tmp_path / "a.tar").read_bytes() == buffer.getvalue()
    assert (shard.samples, shard.bytes) == (count, len(buffer.getvalue()))
    assert shard.sha256 == hashlib.sha256(buffer.getvalue()).hexdigest()
    assert shard.sha256.startswith(HASHES[count])


def test_a_name_that_does_not_fit_is_not_cut(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sample üü.*: name is too long"):
        write_shard(tmp_path / "a.tar", [("ü" * 51, {"x": b""})])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("wanted", [True, False])
def test_sizes_beyond_any_file_are_refused(kind: int, wanted: bool) -> None:
    info = tarfile.TarInfo("big.bin")
    info.size = 1 << 80
    with pytest.raises(ValueError, match=r"a member declares 2\^80 bytes"):
        list(read_members(io.BytesIO(info.tobuf(format=kind)), lambda name: wanted))


def test_names_are_split_as_webdataset_splits_them() -> None:
    for length in range(8):
        for letters in product("aB./", repeat=length):
            name = "".join(letters)
            key, member = base_plus_ext(name)
            assert split_name(name) == (None if key is None else (key, member.lower())), name


NAMES = [
    "README",
    "clip/0001.rgb.jpg",
    "clip/README",
    "clip/0001.DEPTH.PNG",
    "clip/0002.rgb.jpg",
    "v1.0/0001.rgb.jpg",
    "v1.0/0001.meta.json",
    "v1.0/.hidden",
    ".hidden",
    "clip/.hidden",
    "./0001.rgb.jpg",
    "clip/0001.rgb.jpg",
]


def test_members_are_grouped_as_webdataset_groups_them() -> None:
    numbered = list(zip(NAMES, range(len(NAMES)), strict=True))
    theirs = group_by_keys({"fname": name, "data": number, "__url__": ""} for name, number in numbered)
    wanted = [
        (sample["__key__"], {name: value for name, value in sample.items() if not name.startswith("__")})
        for sample in theirs
    ]
    assert list(group_members(numbered)) == wanted
    assert [key for key, _ in wanted] == ["clip/0001", "clip/0002", "v1.0/0001", "clip/", "./0001", "clip/0001"]


def test_a_member_that_stands_twice_is_an_error_as_in_webdataset() -> None:
    twice = [("a.rgb.jpg", 1), ("a.RGB.jpg", 2)]
    with pytest.raises(ValueError, match="duplicate file name"):
        list(group_by_keys({"fname": name, "data": number, "__url__": ""} for name, number in twice))
    with pytest.raises(ValueError, match=r"a\.RGB\.jpg: twice in one sample"):
        list(group_members(twice))


def test_faults_can_be_collected_instead() -> None:
    names = ["a.x", "README", "a.", "../a.x", "/a.x", "b/../../a.x", "a.x", "a.y"]
    faults: list[tuple[str, str]] = []
    groups = list(group_members(zip(names, range(8), strict=True), lambda *fault: faults.append(fault)))
    assert groups == [("a", {"x": 0, "y": 7})]
    assert faults == [*((name, UNNAMED) for name in names[1:6]), ("a.x", TWICE)]


def test_all_readers_agree_on_keys_with_folders_and_dots(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data", {"train": [6], "test": [4]})
    keys = ["clip/0001", "clip/0002", "v1.0/0001", "v1.0/0002", "a/b.c/d", "./e"]
    shard = write_shard(folder / "train-000000.tar", [(key, members(n)) for n, key in enumerate(keys)])
    about = load_dataset(folder)
    about.splits["train"] = [shard]
    (folder / MANIFEST).write_text(about.model_dump_json())

    found = list(read_range(Layout(folder), [shard], 0, 6, frozenset({"rgb.jpg"})))
    assert [sample["__key__"] for sample in found] == keys
    assert [sample["rgb.jpg"] for sample in found] == [members(n)["rgb.jpg"] for n in range(6)]
    assert [sample["__key__"] for sample in samples_in(folder, "train")] == keys
    assert check(folder).faults == []
    joined = Join(folder, about)
    for n, key in enumerate(keys):
        sample = joined.complete({"__key__": key}, frozenset({"depth.png"}))
        assert sample == {"__key__": key, "depth.png": members(n)["depth.png"]}


@pytest.mark.parametrize(("key", "member"), [("v1.0", "rgb.jpg"), ("a", "RGB.jpg"), ("", "rgb.jpg"), ("a", "_rgb.jpg")])
def test_names_that_would_be_read_otherwise_are_not_written(tmp_path: Path, key: str, member: str) -> None:
    with pytest.raises(ValueError, match="would not be read back as member"):
        write_shard(tmp_path / "a.tar", [(key, {member: b""})])
    assert not list(tmp_path.iterdir())
