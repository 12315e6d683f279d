"""Packing into a store: the bytes of a local packing, resumed and shared like one; nothing is left on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from command_line import call
from object_store import object_store
from sources import content, make_source, plan_of

from pipeline.common.errors import UserError
from pipeline.data.manifest import load_dataset
from pipeline.data.source import open_split
from pipeline.packing import target
from pipeline.packing.check import check
from pipeline.packing.pack import MissingShardsError, Packing, pack
from pipeline.packing.splits import DEFAULT

URL = "memory://sets/mine"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WCORD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return make_source(tmp_path / "source")


@pytest.fixture
def memory() -> Iterator[Any]:
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()


def stored(files: Any, folder: str) -> dict[str, bytes]:
    """What a reader of the dataset sees."""
    names = files.find(folder)
    return {name.rpartition("/")[2]: files.cat_file(name) for name in names if "/.pack/" not in name}


def test_a_store_gets_the_bytes_of_a_folder(source: Path, memory: Any, tmp_path: Path) -> None:
    assert pack(plan_of(source), URL) == pack(plan_of(source), tmp_path / "near")
    assert stored(memory, "/sets/mine") == content(tmp_path / "near")
    assert not list(tmp_path.glob("wcord-pack-*"))
    assert check(URL).faults == []
    assert open_split(URL, "train", "label").samples == load_dataset(tmp_path / "near").samples("train")


def test_an_interrupted_packing_resumes(
    source: Path, memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(plan_of(source), tmp_path / "near")
    write_shard, written = target.write_shard, []

    def failing(path: Path, samples: Any) -> Any:
        if len(written) == 3:
            raise OSError(28, "No space left on device", str(path))
        written.append(path.name)
        return write_shard(path, samples)

    monkeypatch.setattr(target, "write_shard", failing)
    with pytest.raises(UserError, match="No space left on device"):
        pack(plan_of(source), URL)
    assert "dataset.json" not in stored(memory, "/sets/mine")
    with pytest.raises(UserError, match="packing was interrupted"):  # not taken for shards of others
        load_dataset(URL)
    monkeypatch.setattr(target, "write_shard", lambda *own: written.append(own[0].name) or write_shard(*own))
    pack(plan_of(source), URL)
    assert len(written) == len(set(written)) == 8
    assert stored(memory, "/sets/mine") == content(tmp_path / "near")


def test_a_lost_or_short_shard_is_written_again(source: Path, memory: Any) -> None:
    pack(plan_of(source), URL)
    before = stored(memory, "/sets/mine")
    memory.rm_file("/sets/mine/train-000001.tar")
    memory.pipe_file("/sets/mine/test-000000.tar", before["test-000000.tar"][:-512])
    pack(plan_of(source), URL)
    assert stored(memory, "/sets/mine") == before


def test_parts_of_several_machines_meet_in_a_store(source: Path, memory: Any, tmp_path: Path) -> None:
    pack(plan_of(source), tmp_path / "near")
    for number in (2, 3, 1):
        packing = Packing(plan_of(source), URL, fractions=DEFAULT, seed=0)
        with packing.claimed():
            packing.write(1, (number, 3))
        if number != 1:
            with pytest.raises(MissingShardsError, match="shards are missing"):
                packing.finish()
    packing.finish()
    assert stored(memory, "/sets/mine") == content(tmp_path / "near")


def test_another_packing_is_not_overwritten_unless_asked(source: Path, memory: Any, tmp_path: Path) -> None:
    pack(plan_of(source), URL, min_shards=6)
    memory.pipe_file("/sets/mine/notes.txt", b"mine")
    before = stored(memory, "/sets/mine")
    with pytest.raises(UserError, match="packed from other sources"):
        pack(plan_of(source), URL, seed=1)
    assert stored(memory, "/sets/mine") == before
    pack(plan_of(source), URL, seed=1, overwrite=True)
    pack(plan_of(source), tmp_path / "near", seed=1)
    assert stored(memory, "/sets/mine") == content(tmp_path / "near") | {"notes.txt": b"mine"}


def test_a_failing_store_is_asked_again(source: Path, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.remote.FIRST_PAUSE", 0.001)
    put_file, failures = type(memory).put_file, []

    def bad(self: Any, *arguments: Any, **options: Any) -> Any:
        failures.append(arguments)
        if len(failures) % 3:
            raise ConnectionError("reset by peer")
        return put_file(self, *arguments, **options)

    monkeypatch.setattr(type(memory), "put_file", bad)
    pack(plan_of(source), URL)
    assert check(URL).faults == []


def test_a_file_url_is_a_folder(source: Path, tmp_path: Path) -> None:
    pack(plan_of(source), f"file://{tmp_path}/near")
    pack(plan_of(source), tmp_path / "other")
    assert content(tmp_path / "near") == content(tmp_path / "other")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://example.org/set", "web servers are read-only"),
        ("s3://key:secret@bucket/set", "must not contain a user name or password"),
        ("nothing://bucket/set", "Protocol not known: nothing"),
    ],
)
def test_urls_that_cannot_be_written_are_named(source: Path, url: str, message: str, capsys: Any) -> None:
    assert call("pack", "folders", source.parent, url, "--field", "rgb=photos") == 2
    said = capsys.readouterr().err
    assert message in said
    assert "secret@" not in said


@pytest.mark.slow
def test_s3_with_worker_processes(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    with object_store(monkeypatch) as files:
        files.mkdir("bucket")
        for part in ("1/2", "2/2"):
            options = ("--field", "rgb=photos", "--part", part, "--workers", 2)
            assert call("pack", "folders", source.parent, "s3://bucket/sets/mine", *options) == 0
        assert call("pack", "folders", source.parent, tmp_path / "near", "--field", "rgb=photos", "--workers", 1) == 0
        files.invalidate_cache()
        assert stored(files, "bucket/sets/mine") == content(tmp_path / "near")
        assert check("s3://bucket/sets/mine").faults == []
        assert call("pack", "folders", source.parent, "s3://nowhere/set", "--field", "rgb=photos", "--workers", 1) == 2
        assert "s3://nowhere/set: cannot be written" in capsys.readouterr().err
