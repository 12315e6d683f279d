"""A file is examined once a machine, and again when it changes."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from shapes_dataset import write_dataset

from pipeline.common.errors import UserError
from pipeline.data import shard_reader
from pipeline.data.source import open_split
from pipeline.data.verified import once_a_machine


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WCORD_CACHE", str(tmp_path / "cache"))


def test_what_was_fine_is_not_examined_again(tmp_path: Path) -> None:
    asked = []
    for about in ("a", "a", "b"):
        assert once_a_machine(tmp_path / "file", about, lambda about=about: asked.append(about)) is None  # type: ignore[misc]
    assert asked == ["a", "b"]


def test_a_fault_is_found_each_time(tmp_path: Path) -> None:
    assert [once_a_machine(tmp_path / "file", "a", lambda: "broken") for _ in range(2)] == ["broken"] * 2


def test_processes_that_come_at_once_examine_once(tmp_path: Path) -> None:
    asked: list[int] = []

    def examine() -> None:
        time.sleep(0.1)
        asked.append(1)

    threads = [threading.Thread(target=once_a_machine, args=(tmp_path / "file", "a", examine)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked == [1]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_without_a_cache_each_process_examines_for_itself(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o500)
    assert once_a_machine(tmp_path / "file", "a", lambda: "broken") == "broken"


def test_another_process_does_not_hash_a_shard_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_dataset(tmp_path / "data", {"train": [4], "test": [2]})
    source = open_split(folder, "train", "label")
    assert len(list(source.read(frozenset({"rgb.jpg"})))) == 4
    hashed = []
    sha256 = shard_reader.sha256
    monkeypatch.setattr(shard_reader, "sha256", lambda path: hashed.append(path.name) or sha256(path))
    shard_reader.verify_shard.cache_clear()
    assert len(list(source.read(frozenset({"rgb.jpg"})))) == 4
    assert hashed == []

    shard = folder / "train-000000.tar"
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"SHA-256 differs from the one"):
        list(source.read(frozenset({"rgb.jpg"})))
    assert hashed == ["train-000000.tar"]
