"""Counts of the shards of others: by headers, remembered, resumed; few bytes of far ones."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from foreign_shards import captioned, img2dataset, keys_by_webdataset, plain_tar, shard_writer, tiny
from store import Store, serving

from pipeline.common.errors import UserError
from pipeline.data import remote, shard_index
from pipeline.data.division import Division
from pipeline.data.foreign import labels_of
from pipeline.data.shard_index import COUNTS, Count, Wanted, count_shards

SAMPLES = Wanted()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Store]]:
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(remote, "RETRIES", 2)
    with serving(tmp_path / "store") as running:
        yield running


def count(paths: list[Path], folder: Path, wanted: Wanted = SAMPLES, workers: int = 1) -> list[Count]:
    return count_shards([str(path) for path in paths], wanted, folder, workers, lambda shards: None)


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    return img2dataset(tmp_path / "shards", [5, 1, 8], lacking={2, 7})


def test_samples_members_sizes_and_label_values(shards: list[Path], tmp_path: Path) -> None:
    counts = count(shards, tmp_path / "index", Wanted(labels_of("json:category")))
    assert [one.samples for one in counts] == [5, 1, 8]
    assert [one.fields for one in counts] == [
        {"jpg": 5, "json": 5, "txt": 4},
        {"jpg": 1, "json": 1, "txt": 1},
        {"jpg": 8, "json": 8, "txt": 7},
    ]
    assert [one.bytes for one in counts] == [path.stat().st_size for path in shards]
    assert counts[0].labels == {"json:category": ["cross", "disc", "square"]}
    assert counts[0].sha256 == ""


def test_samples_are_those_of_webdataset(tmp_path: Path) -> None:
    samples = [
        captioned(0, "a.b/clip.1/0001"),
        captioned(1, "a.b/clip.1/0002"),
        ("plain", {"JPG": captioned(2)[1]["jpg"], "Txt": b"capital"}),
        ("__meta__/about", {"json": b"{}"}),
        tiny(3),
    ]
    path = plain_tar(tmp_path / "0.tar", samples)
    (one,) = count([path], tmp_path / "index")
    assert one.samples == len(keys_by_webdataset([path])) == 4
    assert one.fields == {"cls": 2, "jpg": 3, "json": 2, "txt": 4}


def test_splits_are_counted_and_add_up(shards: list[Path], tmp_path: Path) -> None:
    wanted = Wanted((), Division(shares={"test": 0.4}, group="json:clip"))
    counts = count(shards, tmp_path / "index", wanted)
    assert [sum(one.splits.values()) for one in counts] == [5, 1, 8]


def test_an_interrupted_count_resumes(shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, counted = shard_index._count, list[str]()

    def stops(after: int, job: tuple[str, int, str], wanted: Wanted) -> Count:
        if len(counted) == after:
            raise KeyboardInterrupt
        counted.append(Path(job[0]).name)
        return own(job, wanted)

    monkeypatch.setattr(shard_index, "_count", partial(stops, 2))
    with pytest.raises(KeyboardInterrupt):
        count(shards, tmp_path / "index")
    memory = tmp_path / "index" / COUNTS
    memory.write_bytes(memory.read_bytes()[:-20])  # the disk was full
    monkeypatch.setattr(shard_index, "_count", partial(stops, 99))
    counts = count(shards, tmp_path / "index")
    assert counted == ["00000.tar", "00001.tar", "00001.tar", "00002.tar"]
    assert count(shards, tmp_path / "index") == counts
    assert len(counted) == 4  # what came after the cut line is remembered too


def test_only_a_changed_shard_is_counted_again(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, counted = shard_index._count, list[str]()
    monkeypatch.setattr(
        shard_index, "_count", lambda job, wanted: counted.append(Path(job[0]).name) or own(job, wanted)
    )
    count(shards, tmp_path / "index")
    plain_tar(shards[1], [captioned(1), captioned(2)])
    assert [one.samples for one in count(shards, tmp_path / "index")] == [5, 2, 8]
    assert counted == ["00000.tar", "00001.tar", "00002.tar", "00001.tar"]
    os.utime(shards[2])  # of the same size, and perhaps of other content
    count(shards, tmp_path / "index")
    assert counted[4:] == ["00002.tar"]
    count(shards, tmp_path / "index", Wanted(hashed=True))
    assert counted[5:] == ["00000.tar", "00001.tar", "00002.tar"]


@pytest.mark.usefixtures("forked_pools")
def test_several_processes_count_the_same(shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = count(shards, tmp_path / "alone", Wanted(labels_of("json:category"), hashed=True))
    monkeypatch.setattr(shard_index, "WORTH_PROCESSES", 0)
    assert count(shards, tmp_path / "together", Wanted(labels_of("json:category"), hashed=True), 2) == alone


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:3000], r"00001\.tar: .*truncated.*Repair the shard or remove it from data\.shards"),
        (
            lambda data: b"\x1f\x8b" + data[2:],
            r"00001\.tar: the tar is compressed with gzip.*decompress it \(`gunzip`\)",
        ),
        (lambda data: data[:100] + b"\7" + data[101:], r"00001\.tar: it is damaged: a header is invalid"),
        (lambda data: b"", r"00001\.tar: it is truncated"),
    ],
)
def test_a_shard_that_cannot_be_counted_is_named(
    shards: list[Path], tmp_path: Path, damage: object, message: str
) -> None:
    shards[1].write_bytes(damage(shards[1].read_bytes()))  # type: ignore[operator]
    with pytest.raises(UserError, match=message):
        count(shards, tmp_path / "index")


def test_a_damaged_shard_is_counted_as_far_as_it_can_be_read_and_reported_each_time(
    shards: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = shards[2].read_bytes()
    shards[2].write_bytes(whole[: len(whole) // 2])
    tolerant = Wanted(tolerant=True)
    for _ in range(2):
        caplog.clear()
        counts = count(shards, tmp_path / "index", tolerant)
        assert [one.samples for one in counts[:2]] == [5, 1]
        assert 0 < counts[2].samples < 8
        (warning,) = caplog.messages
        assert re.search(
            rf"00002\.tar: it is truncated.* The shard is skipped: the {counts[2].samples} samples before", warning
        )
    with pytest.raises(UserError, match=r"00002\.tar: it is truncated.*data\.max_faulty"):
        count(shards, tmp_path / "index")
    shards[2].write_bytes(whole)
    assert [one.samples for one in count(shards, tmp_path / "index")] == [5, 1, 8]


def test_headers_of_a_far_shard_are_less_than_a_fiftieth_of_it(store: type[Store], tmp_path: Path) -> None:
    shard_writer(store.folder, [(f"{n:05d}", {"bin": os.urandom(100_000)}) for n in range(60)], maxcount=30)
    urls = [f"{store.url}/{number:05d}.tar" for number in range(2)]
    counts = count_shards(urls, Wanted(), tmp_path / "index", 1, lambda shards: None)
    assert [one.samples for one in counts] == [30, 30]
    assert {one.state for one in counts} == {"1"}
    assert store.served["bytes"] < 0.02 * sum(one.bytes for one in counts)
    served = store.served.copy()
    count_shards(urls, Wanted(), tmp_path / "index", 1, lambda shards: None)
    assert store.served == served
    store.versions["00001.tar"] = "2"
    count_shards(urls, Wanted(), tmp_path / "index", 1, lambda shards: None)
    assert 0.4 < store.served["bytes"] / served["bytes"] - 1 < 0.6


def test_a_far_shard_that_is_not_there_is_named(store: type[Store], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"http://.*/00000\.tar: cannot be read .*does not exist.* Check data\.shards"):
        count_shards([f"{store.url}/00000.tar"], Wanted(), tmp_path / "index", 1, lambda shards: None)


def test_a_label_of_too_many_values_is_no_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_index, "MOST_VALUES", 5)
    documents = [json.dumps({"id": f"i{number}", "kind": number % 5}).encode() for number in range(20)]
    samples = [(str(number), {"json": document}) for number, document in enumerate(documents)]
    path = plain_tar(tmp_path / "0.tar", samples)
    wanted = Wanted((*labels_of("json:id"), *labels_of("json:kind")[1:]))
    assert count([path], tmp_path / "index", wanted)[0].labels == {"json:kind": ["0", "1", "2", "3", "4"]}


def test_no_byte_is_copied(shards: list[Path], tmp_path: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in shards}
    count(shards, tmp_path / "index", Wanted(hashed=True))
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in shards} == before
    assert [path.name for path in (tmp_path / "index").iterdir()] == [COUNTS]
    shutil.rmtree(tmp_path / "index")
