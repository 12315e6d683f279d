"""Numbers of samples that others have stored: used without reading shards, never where they are wrong."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_shards import captioned, img2dataset, keys_by_webdataset, plain_tar, shard_writer, tiny
from store import Store, serving

from modalities import Text
from pipeline.common.errors import UserError
from pipeline.data import remote, shard_index
from pipeline.data import stream as streams
from pipeline.data.manifest import load_dataset
from pipeline.data.source import Policy, Source, open_split
from pipeline.data.stream import EvalStream, TrainStream, loader
from pipeline.data.views import View
from pipeline.packing.check import check
from pipeline.packing.index import index
from pipeline.packing.recipes.shard_rows import find_rows
from pipeline.packing.recipes.shard_source import ShardSource

TEXT = {"student": View(Text(), 16)}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards whose headers are all read."""
    own, names = shard_index._count, list[str]()
    monkeypatch.setenv("WCORD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shard_index, "_count", lambda job, wanted: names.append(Path(job[0]).name) or own(job, wanted))
    return names


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Store]]:
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(remote, "RETRIES", 2)
    with serving(tmp_path / "shards") as running:
        yield running


def wids(file: Path, rows: dict[str, int], **other: Any) -> Path:
    """An index as `widsindex create` writes it."""
    shards = [{"url": url, "md5sum": "", "nsamples": samples} | other for url, samples in rows.items()]
    file.write_text(json.dumps({"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": shards}, indent=2))
    return file


def captions(folder: Path, sizes: list[int]) -> list[Path]:
    """Shards of captions without labels."""
    numbers = iter(range(sum(sizes)))
    return [plain_tar(folder / f"{n:05d}.tar", [tiny(next(numbers)) for _ in range(s)]) for n, s in enumerate(sizes)]


def state(path: Path, samples: int) -> None:
    """What img2dataset writes next to a shard."""
    about = {"count": samples + 3, "successes": samples, "failed_to_download": 2, "failed_to_resize": 1}
    path.with_name(f"{path.stem}_stats.json").write_text(json.dumps(about | {"status_dict": {"success": samples}}))


def keys(source: Source) -> list[str]:
    return [key for batch in loader(EvalStream(source, TEXT, batch=4), 0, CPU) for key in batch["key"]]


def test_img2dataset_states_its_samples_and_no_shard_is_counted(tmp_path: Path, counted: list[str]) -> None:
    paths = img2dataset(tmp_path / "shards", [5, 1, 8])
    dataset = index([str(tmp_path / "shards")], tmp_path / "index")
    assert counted == []
    assert [shard.samples for shard in dataset.splits["train"]] == [5, 1, 8]
    assert dataset.extensions == {"jpg": 14, "json": 14, "txt": 14}
    assert keys(open_split(tmp_path / "index", "train", "label")) == keys_by_webdataset(paths)
    assert check(tmp_path / "index").faults == []
    # Counted or stated, it is the same data set: checkpoints and caches are valid for both.
    for path in (tmp_path / "shards").glob("*.json"):
        path.unlink()
    again = index([str(tmp_path / "shards")], tmp_path / "again")
    assert counted == [path.name for path in paths]
    assert again.digest() == dataset.digest()
    assert again.counted
    assert not dataset.counted


@pytest.mark.parametrize("named", [False, True])
def test_an_index_of_wids_next_to_the_shards_or_named(tmp_path: Path, counted: list[str], named: bool) -> None:
    paths = captions(tmp_path / "shards", [5, 2, 8])
    rows = {"00002.tar": 8, str(paths[0]): 5, "elsewhere/none.tar": 9}
    file = wids(tmp_path / "shards" / "shardindex.json", dict([*rows.items()][: 2 if named else 3]))
    dataset = load_dataset(file if named else tmp_path / "shards")
    assert counted == ([] if named else ["00001.tar"])
    expected = [paths[2], paths[0]] if named else paths
    assert keys(open_split(file if named else tmp_path / "shards", "train", "label")) == keys_by_webdataset(expected)
    assert dataset.samples("train") == (13 if named else 15)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("ranks", [1, 2])
def test_an_epoch_of_stated_samples(
    tmp_path: Path, counted: list[str], ranks: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = captions(tmp_path / "shards", [5, 2, 9])
    for path, samples in zip(paths, [5, 2, 9], strict=True):
        state(path, samples)
    source = open_split(tmp_path / "shards", "train", "label")
    found: Counter[str] = Counter()
    for rank in range(ranks):
        stream = TrainStream(source, TEXT, batch=1, ranks=ranks, rank=rank, shuffle=4)
        for worker in range(workers):
            monkeypatch.setattr(streams, "worker_place", lambda own=worker: (own, workers))
            batches = iter(stream)
            found.update(k for _ in range(worker, stream.steps_per_epoch, workers) for k in next(batches)["key"])  # type: ignore[call-overload]
    assert counted == []
    assert found == Counter(keys_by_webdataset(paths))


@pytest.mark.parametrize("policy", [Policy(), Policy(max_faulty=0.9)])
@pytest.mark.parametrize("stated", [1, 3])
def test_a_wrong_number_ends_the_run_and_is_never_believed_again(
    tmp_path: Path, counted: list[str], stated: int, policy: Policy
) -> None:
    paths = captions(tmp_path / "shards", [5, 2, 8])
    for path, samples in zip(paths, [5, stated, 8], strict=True):
        state(path, samples)
    source = open_split(tmp_path / "shards", "train", "label", policy=policy)
    message = rf"00001\.tar: the shard has 2 samples, but .*/00001_stats\.json states {stated}\. .*without --resume"
    with pytest.raises(UserError, match=message):
        keys(source)
    assert counted == []
    source = open_split(tmp_path / "shards", "train", "label", policy=policy)
    assert counted == ["00000.tar", "00001.tar", "00002.tar"]
    assert keys(source) == keys_by_webdataset(paths)
    index([str(tmp_path / "shards")], tmp_path / "index")
    assert len(counted) == 6


def test_a_member_that_no_first_sample_has_ends_the_run(tmp_path: Path, counted: list[str]) -> None:
    path = plain_tar(tmp_path / "shards" / "0.tar", [tiny(0), tiny(1), captioned(2)])
    wids(tmp_path / "shards" / "index.json", {"0.tar": 3})
    with pytest.raises(UserError, match=r"0\.tar: the shard has the member cls, which the first sample of no shard"):
        keys(open_split(tmp_path / "shards", "train", "label"))
    assert keys(open_split(tmp_path / "shards", "train", "label")) == keys_by_webdataset([path])
    assert counted == ["0.tar"]


def test_check_and_pack_report_a_wrong_number(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (path,) = captions(tmp_path / folder, [4])
        state(path, 5)
    (fault,) = check(tmp_path / "a").faults
    assert re.search(r"00000\.tar: the shard has 4 samples, but .*/00000_stats\.json states 5", fault)
    assert check(tmp_path / "a").faults == []
    with pytest.raises(UserError, match=r"00000_stats\.json states 5"):
        list(find_rows(ShardSource.open(str(tmp_path / "b"), {}).jobs(), 1))
    assert len(list(find_rows(ShardSource.open(str(tmp_path / "b"), {}).jobs(), 1))) == 4


@pytest.mark.parametrize(
    "why", ["contradiction", "another size", "labels", "division", "hash", "no number", "an empty shard", "damage"]
)
def test_shards_are_counted_where_a_statement_does_not_suffice(
    tmp_path: Path, counted: list[str], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    (path,) = captions(tmp_path / "shards", [6])
    state(path, 6)
    options: dict[str, Any] = {}
    if why == "contradiction":
        wids(path.with_name("index.json"), {"00000.tar": 7})
    elif why == "another size":
        path.with_name("00000_stats.json").unlink()
        wids(path.with_name("index.json"), {"00000.tar": 6}, filesize=path.stat().st_size + 512)
    elif why == "labels":
        plain_tar(path, map(captioned, range(6)))
    elif why == "division":
        options = {"splits": {"test": "0.5"}}
    elif why == "hash":
        options = {"hashed": True}
    elif why == "no number":
        path.with_name("00000_stats.json").write_text('{"count": 6, "successes": true}')
    elif why == "an empty shard":
        state(path, 0)
    else:
        path.write_bytes(b"\x1f\x8b" + path.read_bytes()[2:])
        with pytest.raises(UserError, match="compressed with gzip"):
            index([str(path)], tmp_path / "index")
        return
    dataset = index([str(path)], tmp_path / "index", **options)
    assert counted == ["00000.tar"]
    assert sum(map(dataset.samples, dataset.splits)) == 6
    assert dataset.counted


@pytest.mark.parametrize("named", [False, True])
def test_remote_shards_need_one_request_for_their_number_and_one_for_their_members(
    store: type[Store], counted: list[str], named: bool
) -> None:
    paths = shard_writer(
        store.folder, [(f"{n:03d}", {"bin": bytes(40_000), "txt": b"a"}) for n in range(60)], maxcount=20
    )
    if named:
        wids(store.folder / "index.json", {path.name: 20 for path in paths})
    for path in paths if not named else []:
        state(path, 20)
    spec = f"{store.url}/index.json" if named else f"{store.url}/{{00000..00002}}.tar"
    dataset = load_dataset(spec)
    assert counted == []
    assert dataset.samples("train") == 60
    assert store.served["bytes"] < 0.01 * sum(path.stat().st_size for path in paths)
    assert keys(open_split(spec, "train", "label")) == keys_by_webdataset(paths)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "index.json: cannot be read: not a wids index"),
        ('{"shardlist": [{"url": "pipe:cat 0.tar", "nsamples": 1}]}', "pipe: commands are never run"),
        ('{"shardlist": [{"url": "none.tar", "nsamples": 1}]}', "its shard .*/none.tar does not exist"),
        ('{"shardlist": []}', "index.json: contains no"),
    ],
)
def test_an_index_of_wids_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load_dataset(tmp_path / "index.json")
