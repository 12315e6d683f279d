"""Shards on the Hugging Face Hub, through huggingface_hub's own file system and a stand-in of the Hub."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from foreign_shards import captioned, keys_by_webdataset, shard_writer
from hub import hub, use_endpoint
from store import Store

from modalities import Text
from pipeline.common.errors import UserError
from pipeline.data import hub as hub_module
from pipeline.data import remote
from pipeline.data.manifest import load_dataset
from pipeline.data.source import open_split
from pipeline.data.stream import EvalStream, loader
from pipeline.data.views import View
from pipeline.packing.index import index

SET = "hf://datasets/me/set"


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WCORD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(remote, "RETRIES", 2)


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Store]]:
    """A hub with 20 captioned photos in the folder `data` of three shards."""
    with hub(tmp_path / "set", monkeypatch) as store:
        shard_writer(store.folder / "data", map(captioned, range(20)), maxcount=8)
        (store.folder / "README.md").write_text("A data set.")
        yield store


def keys(spec: str | Path) -> list[str]:
    source = open_split(spec, "train", "label")
    batches = loader(EvalStream(source, {"student": View(Text(), 16)}, batch=8), 0, torch.device("cpu"))
    return [key for batch in batches for key in batch["key"]]


@pytest.mark.parametrize("spec", [f"{SET}/data/{{00000..00002}}.tar", f"{SET}/data/*.tar", SET, f"{SET}/data"])
def test_shards_by_pattern_glob_and_folder(running: type[Store], spec: str) -> None:
    assert keys(spec) == keys_by_webdataset(sorted(running.folder.glob("data/*.tar")))


def test_an_index_reads_headers_only_and_is_read_like_a_data_set(running: type[Store], tmp_path: Path) -> None:
    samples = [(f"{n:05d}", {"bin": os.urandom(100_000)}) for n in range(40)]
    (path,) = shard_writer(running.folder / "large", samples, maxcount=40)
    index([f"{SET}/large/00000.tar"], tmp_path / "index")
    assert running.served["bytes"] < 0.02 * path.stat().st_size
    source = open_split(tmp_path / "index", "train", "label")
    assert [sample["__key__"] for sample in source.read(frozenset())] == keys_by_webdataset([path])


def test_a_shard_that_was_replaced_has_another_version(running: type[Store], monkeypatch: pytest.MonkeyPatch) -> None:
    spec = f"{SET}/data/{{00000..00002}}.tar"
    before = load_dataset(spec).splits["train"]
    path = running.folder / "data" / "00001.tar"
    path.write_bytes(path.read_bytes().replace(b"number 13", b"Number 13"))
    use_endpoint(running.url, monkeypatch)  # as in another process: its file system remembers listings
    after = load_dataset(spec).splits["train"]
    assert [old.state != new.state for old, new in zip(before, after, strict=True)] == [False, True, False]


def test_what_does_not_exist_is_named(running: type[Store]) -> None:
    with pytest.raises(UserError, match=r"hf://datasets/me/set/data/00007\.tar: cannot be read .*does not exist"):
        load_dataset(f"{SET}/data/00007.tar")
    with pytest.raises(UserError, match=r"hf://datasets/me/set/none/\*\.tar: contains no"):
        load_dataset(f"{SET}/none/*.tar")


@pytest.mark.parametrize("spec", [f"{SET}/data/{{00000..00002}}.tar", f"{SET}/data/*.tar", SET])
@pytest.mark.parametrize("silent", [False, True])
def test_a_hub_that_cannot_be_reached_is_an_error_within_5_s(
    spec: str, silent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hub_module.UNREACHABLE < 5
    if silent:  # it accepts the connection and never answers
        monkeypatch.setattr(hub_module, "UNREACHABLE", 0.3)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if silent:
            server.listen()
        use_endpoint(f"http://127.0.0.1:{server.getsockname()[1]}", monkeypatch)
        start = time.monotonic()
        with pytest.raises(UserError, match=r"Hub at http://127\.0\.0\.1:\d+ cannot be reached .*HF_ENDPOINT"):
            load_dataset(spec)
        assert time.monotonic() - start < 5
