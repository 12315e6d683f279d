"""Shards of others in a store: every sample once by address alone, counted by their headers, of the version counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from foreign_shards import captioned, keys_by_webdataset, plain_tar, shard_writer
from object_store import object_store
from store import Store, serving

from modalities import RGB, Text
from pipeline.common.errors import UserError
from pipeline.data import remote
from pipeline.data.source import Source, open_split
from pipeline.data.stream import EvalStream, TrainStream, loader
from pipeline.data.views import View
from pipeline.packing.index import index

BOTH = {"teacher": View(RGB(), 24), "student": View(Text(), 16)}
CPU = torch.device("cpu")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Store]]:
    """A server of 30 captioned photos in three shards."""
    monkeypatch.setenv("WCORD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(remote, "RETRIES", 2)
    with serving(tmp_path / "store") as running:
        shard_writer(running.folder, map(captioned, range(30)), maxcount=12)
        yield running


def captions(source: Source) -> dict[str, str]:
    """Key -> the bytes of the caption, as text."""
    found = {}
    for batch in loader(EvalStream(source, {"student": View(Text(), 16)}, batch=8), 0, CPU):
        for key, ids in zip(batch["key"], batch["student"]["ids"], strict=True):
            found[key] = ids.tolist()
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_by_address_alone(store: type[Store], workers: int) -> None:
    stream = TrainStream(open_split(f"{store.url}/{{00000..00002}}.tar", "train", "label"), BOTH, batch=5)
    batches = loader(stream, workers, CPU)
    seen = Counter(key for _ in range(6) for key in next(batches)["key"])
    assert seen == Counter(keys_by_webdataset(sorted(store.folder.glob("*.tar"))))


def test_an_index_divides_what_stays_far_away(store: type[Store], tmp_path: Path) -> None:
    index([f"{store.url}/{{00000..00002}}.tar"], tmp_path / "index", splits={"test": "0.3"})
    assert not list(tmp_path.glob("cache/**/*.tar"))
    found = [key for split in ("train", "test") for key in captions(open_split(tmp_path / "index", split, "label"))]
    assert sorted(found) == keys_by_webdataset(sorted(store.folder.glob("*.tar")))


def test_a_shard_that_was_replaced_in_the_store_is_fetched_again(store: type[Store]) -> None:
    spec = f"{store.url}/{{00000..00002}}.tar"
    before = captions(open_split(spec, "train", "label"))
    path = store.folder / "00001.tar"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes().replace(b"number 13", b"Number 13"))
    assert path.stat().st_size == size
    store.versions[path.name] = "2"
    after = captions(open_split(spec, "train", "label"))
    assert {key for key in before if before[key] != after[key]} == {"000000013"}
    served = store.served["bytes"]
    assert captions(open_split(spec, "train", "label")) == after
    assert store.served["bytes"] == served


def test_a_folder_whose_server_lists_nothing_says_what_to_write(store: type[Store]) -> None:
    with pytest.raises(UserError, match=r"Use a pattern, e\.g\.|contains no dataset\.json and no \.tar"):
        open_split(store.url, "train", "label")


@pytest.mark.slow
def test_an_object_store_by_pattern_folder_glob_and_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WCORD_CACHE", str(tmp_path / "cache"))
    paths = shard_writer(tmp_path / "shards", map(captioned, range(30)), maxcount=12)
    with object_store(monkeypatch) as files:
        files.mkdir("bucket")
        for path in paths:
            files.put(str(path), f"bucket/cc/{path.name}")
        index(["s3://bucket/cc"], tmp_path / "index")
        expected = keys_by_webdataset(paths)
        for spec in ("s3://bucket/cc/{00000..00002}.tar", "s3://bucket/cc", "s3://bucket/*/0*.tar", tmp_path / "index"):
            assert list(captions(open_split(spec, "train", "label"))) == expected
        plain_tar(paths[1], map(captioned, range(40, 44)))
        files.put(str(paths[1]), f"bucket/cc/{paths[1].name}")
        type(files).clear_instance_cache()  # as in another process: a listing is remembered by this one
        source = open_split("s3://bucket/cc/{00000..00002}.tar", "train", "label")
        assert list(captions(source)) == keys_by_webdataset(paths)
        with pytest.raises(UserError, match=r"s3://bucket/none: contains no dataset\.json and no \.tar"):
            open_split("s3://bucket/none", "train", "label")
