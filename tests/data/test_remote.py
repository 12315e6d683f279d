"""Shards from other machines: whole and once each, however badly the network behaves."""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

import pytest
import torch
from object_store import object_store
from shapes_dataset import write_dataset

from modalities import RGB, Depth
from pipeline.common.errors import UserError
from pipeline.data import remote
from pipeline.data import shard_reader as samples
from pipeline.data.feature_cache import Cache, Fingerprint, manifest_path, open_cache
from pipeline.data.shard_reader import verify_shard
from pipeline.data.skipped import Skipped
from pipeline.data.source import Policy, open_split
from pipeline.data.stream import EvalStream, TrainStream, loader
from pipeline.data.views import View
from pipeline.packing.check import check

VIEWS = {"teacher": View(RGB(), 24), "student": View(Depth(), 16)}
CPU = torch.device("cpu")


class BadServer(BaseHTTPRequestHandler):
    """Serves ranges of files; 20 % of requests fail, and as many bodies are cut or stall."""

    folder: ClassVar[Path]
    chance: ClassVar[random.Random]
    said: ClassVar[Counter[str]]
    wrong: ClassVar[float]
    ranges: ClassVar[bool] = True

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        # Google's JSON API asks for /download/storage/v1/b/BUCKET/o/NAME, the others for /NAME.
        path = self.folder / unquote(urlsplit(self.path).path).rpartition("/o/shapes/")[2].lstrip("/")
        luck = self.chance.random()
        if luck < self.wrong:
            self.said["failed"] += 1
            return self.send_error(503)
        if not path.is_file():
            return self.send_error(404)
        data = path.read_bytes()
        wanted = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted and self.ranges:
            start, stop = int(wanted[1]), int(wanted[2] or len(data) - 1) + 1
            data = data[start:stop]
        self.send_response(206 if wanted and self.ranges else 200)
        if wanted and self.ranges:
            self.send_header("Content-Range", f"bytes {start}-{start + len(data) - 1}/{path.stat().st_size}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return None
        if luck < 1.5 * self.wrong:
            self.said["cut"] += 1
            self.wfile.write(data[: len(data) // 2])
        elif luck < 1.75 * self.wrong:
            self.said["stalled"] += 1
            self.wfile.write(data[:10])
            self.wfile.flush()
            time.sleep(1.5)
        else:
            self.said["served"] += 1
            self.wfile.write(data)
        return None

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def said() -> Counter[str]:
    """What the server did, by kind."""
    return Counter()


@pytest.fixture
def server(shapes: Path, tmp_path: Path, said: Counter[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("WCORD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "BLOCK", 10_000)
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(remote, "STALLED", 0.4)
    handler = type("Handler", (BadServer,), {"folder": shapes, "chance": random.Random(0), "said": said, "wrong": 0.2})
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_over_a_bad_network_has_every_sample_once(server: str, said: Counter[str], workers: int) -> None:
    stream = TrainStream(open_split(server, "train", "label"), VIEWS, batch=8)
    batches = loader(stream, workers, CPU)
    seen = Counter(key for _ in range(12) for key in next(batches)["key"])
    assert seen == Counter(f"s{i:05d}" for i in range(96))
    assert min(said["failed"], said["cut"], said["stalled"]) > 0


@pytest.mark.slow
def test_a_google_bucket_over_a_bad_network(server: str, said: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server)
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # or it asks Google what kind of bucket it is
    pytest.importorskip("gcsfs")
    source = open_split("gs://recordings/shapes", "train", "label")
    seen = Counter(key for b in loader(EvalStream(source, VIEWS, batch=8), 2, CPU) for key in b["key"])
    assert seen == Counter(f"s{i:05d}" for i in range(96))
    assert min(said["failed"], said["cut"], said["stalled"]) > 0
    with pytest.raises(UserError, match=r"elsewhere: contains no dataset.json and no .tar"):
        open_split("gs://recordings/elsewhere", "train", "label")


def test_a_second_run_fetches_no_shard_again(server: str, tmp_path: Path) -> None:
    for _ in range(2):
        source = open_split(server, "test", "label")
        assert sum(len(b["key"]) for b in loader(EvalStream(source, VIEWS, batch=8), 0, CPU)) == 30
        times = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*/*.tar")}
    assert len(times) == 2
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_an_interrupted_shard_goes_on_where_it_stopped(
    server: str, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_split(server, "train", "label")
    shard, whole = source.shards[0], (shapes / source.shards[0].file).read_bytes()
    (source.folder / f"{shard.file}.part").write_bytes(whole[:15_000])
    starts: list[int] = []
    block = remote.read_block
    monkeypatch.setattr(remote, "read_block", lambda fs, path, a, b: starts.append(a) or block(fs, path, a, b))
    remote.fetch(source.folder / shard.file, shard.bytes)
    assert min(starts) == 15_000
    assert (source.folder / shard.file).read_bytes() == whole


def test_a_damaged_copy_is_fetched_again(server: str) -> None:
    source = open_split(server, "test", "label")
    path = source.folder / source.shards[0].file
    remote.fetch(path, source.shards[0].bytes)
    data = bytearray(path.read_bytes())
    data[3000] ^= 1
    path.write_bytes(data)
    assert sum(len(b["key"]) for b in loader(EvalStream(source, VIEWS, batch=8), 0, CPU)) == 30


def test_a_shard_that_is_always_gone_again_is_named(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_split(server, "test", "label")
    monkeypatch.setattr("pipeline.data.shard_reader.fetch", lambda *about: None)  # others take the space at once
    with pytest.raises(UserError, match=r"test-000000\.tar: it was evicted after each download; raise WCORD_CACHE_GB"):
        next(loader(EvalStream(source, VIEWS, batch=8), 0, CPU))


class SlowLine:
    """A file system that stalls for more than so many bytes at a time."""

    def __init__(self, data: bytes, most: int) -> None:
        self.data, self.most, self.asked = data, most, list[int]()

    def cat_file(self, path: str, start: int = 0, end: int | None = None) -> bytes:
        end = len(self.data) if end is None else end
        self.asked.append(end - start)
        if end - start > self.most:
            raise TimeoutError
        return self.data[start:end]


def test_a_slow_line_is_asked_for_less_at_a_time(server: str, shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_split(server, "test", "label")
    shard = source.shards[0]
    line = SlowLine((shapes / shard.file).read_bytes(), 3000)
    monkeypatch.setattr(remote, "file_system", lambda url: (line, url))
    remote.fetch(source.folder / shard.file, shard.bytes)
    assert (source.folder / shard.file).read_bytes() == line.data
    assert line.asked[:3] == [10_000, 5_000, 2_500]
    assert sum(asked > 3000 for asked in line.asked) < len(line.asked) / 2 + 2


def test_what_was_made_in_a_mirror_stays_and_what_is_on_its_way_counts(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_split(server, "train", "label")
    first, second = (source.folder / shard.file for shard in source.shards[:2])
    own = source.folder / "train-000000.first.tar"
    remote.pin(own)
    own.write_bytes(bytes(50_000))
    remote.fetch(first, source.shards[0].bytes)
    monkeypatch.setenv("WCORD_CACHE_GB", str((source.shards[0].bytes + source.shards[1].bytes) / 1e9))
    remote.fetch(second, source.shards[1].bytes)
    assert all(path.exists() for path in (own, first, second))
    (source.folder / "train-000002.tar.part").write_bytes(bytes(10_000))
    remote._evict(second)
    assert [path.exists() for path in (own, first, second)] == [True, False, True]


def test_a_limit_that_is_no_number_is_named(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WCORD_CACHE_GB", "50GB")
    source = open_split(server, "test", "label", policy=Policy(max_faulty=0.9))
    with pytest.raises(UserError, match=r"^WCORD_CACHE_GB: `50GB` is not a number"):
        next(loader(EvalStream(source, VIEWS, batch=8), 0, CPU))


@pytest.mark.slow
def test_the_mirror_stays_within_its_limit(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_split(server, "train", "label")
    largest = max(shard.bytes for shard in source.shards)
    monkeypatch.setenv("WCORD_CACHE_GB", str(largest / 1e9))
    batches = loader(TrainStream(source, VIEWS, batch=8), 0, CPU)
    for _ in range(24):
        next(batches)
        assert sum(path.stat().st_size for path in source.folder.glob("*.tar")) <= largest


def test_a_server_that_is_gone_or_lacks_a_shard_is_named(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"elsewhere: contains no dataset.json and no .tar"):
        open_split(f"{server}/elsewhere", "train", "label")
    monkeypatch.setattr(remote, "RETRIES", 2)
    message = r"http://127.0.0.1:1/dataset.json: 2 attempts failed\. The last error was Client"
    with pytest.raises(UserError, match=message):
        open_split("http://127.0.0.1:1", "train", "label")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("https://me:secret@host/shapes", r"^https://…@host: .* must not contain a user name or password"),
        ("s3://me:secret@bucket/shapes", r"^s3://…@bucket: "),
        ("https://host/shapes?signature=secret", r"^https://host/shapes: .* must not contain a query or signature"),
    ],
)
def test_an_address_with_a_secret_in_it_is_refused_and_not_repeated(
    address: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WCORD_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=message) as raised:
        open_split(address, "train", "label")
    assert "secret" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_other_schemes_are_only_names_of_folders() -> None:
    for name in ("pipe:ls", "file:///etc", "ssh://host/x", "data/shapes"):
        assert not remote.is_remote(name)


def test_check_reads_a_remote_data_set(server: str) -> None:
    assert check(server).faults == []


def test_check_does_not_take_a_stale_copy_for_the_remote_shard(server: str) -> None:
    source = open_split(server, "test", "label")
    for shard in source.shards:
        (source.folder / shard.file).write_bytes(b"of an earlier packing")
    assert check(server).faults == []


def test_a_shard_that_was_replaced_while_it_was_opened_is_opened_again(
    server: str, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_split(server, "test", "label")
    shard = source.shards[0]
    path = source.folder / shard.file
    path.write_bytes(b"of an earlier packing")
    told: list[str] = []

    def elsewhere(*about: Any) -> str | None:  # another process has fetched it anew by now
        if not told:
            path.unlink()
            remote.fetch(path, shard.bytes)
        told.append(shard.file)
        return verify_shard(*about)

    monkeypatch.setattr(samples, "verify_shard", elsewhere)
    with ExitStack() as stack:
        assert samples.open_shard(stack, path, shard).read() == (shapes / shard.file).read_bytes()


def test_a_shard_that_is_not_there_is_named(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_split(server, "test", "label")
    missing = replace(source, shards=(source.shards[0].model_copy(update={"file": "test-000009.tar"}),))
    with pytest.raises(UserError, match=rf"{server}/test-000009\.tar does not exist"):
        next(loader(EvalStream(missing, VIEWS, batch=8), 0, CPU))


def test_a_remote_shard_that_was_cut_short_is_skipped_where_faults_may_be(
    tmp_path: Path, said: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WCORD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.001)
    folder = write_dataset(tmp_path / "data", {"train": [16, 16]})
    cut = folder / "train-000001.tar"
    cut.write_bytes(cut.read_bytes()[:20_000])
    about = {"folder": folder, "chance": random.Random(0), "said": said, "wrong": 0.0}
    running = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (BadServer,), about))
    Thread(target=running.serve_forever, daemon=True).start()
    url, rest = f"http://127.0.0.1:{running.server_port}", list[Skipped]()
    source = open_split(url, "train", "label", policy=Policy(max_faulty=0.5))
    seen = [key for b in loader(EvalStream(source, VIEWS, batch=8), 0, CPU, rest) for key in b["key"]]
    assert (len(seen), len(rest)) == (16, 16)
    assert "train-000001.tar ends after 20000 of " in rest[0].message
    running.shutdown()
    running.server_close()
    with pytest.raises(UserError, match="attempts failed"):
        remote.fetch(source.folder / "train-000001.tar", source.shards[1].bytes)


class Forbidden:
    """A store that gives nothing away, not even what there is."""

    def cat_file(self, path: str) -> bytes:
        raise PermissionError("Access Denied")


def test_a_store_that_forbids_it_is_named(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_split(server, "test", "label")
    about = Cache(
        name="first",
        fingerprint=Fingerprint(weights="", sight="", draw="", shards={}, joined=[]),
        views=1,
        dtype="float32",
        pooled=1,
        maps=[],
        classes=None,
        licence="",
        sidecars={},
    )
    manifest_path(source.folder, "first").write_text(about.model_dump_json())
    monkeypatch.setattr(remote, "file_system", lambda url: (Forbidden(), url))
    with pytest.raises(UserError, match=rf"{server}/dataset\.json: permission denied \(Access Denied\)"):
        open_split(server, "test", "label")
    assert open_cache(source.folder, "first", about.fingerprint) == about  # it was made here


@pytest.mark.slow
def test_an_object_store(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WCORD_CACHE", str(tmp_path))
    with object_store(monkeypatch) as files:
        files.mkdir("recordings")
        for path in shapes.iterdir():
            files.put(str(path), f"recordings/shapes/{path.name}")
        source = open_split("s3://recordings/shapes", "train", "label")
        seen = Counter(key for b in loader(EvalStream(source, VIEWS, batch=8), 2, CPU) for key in b["key"])
        assert seen == Counter(f"s{i:05d}" for i in range(96))


class Answers(BaseHTTPRequestHandler):
    """Denies access always; is busy at first and says for how long."""

    url: ClassVar[str]
    status: ClassVar[int]
    times: ClassVar[list[float]]

    def do_GET(self) -> None:
        self.times.append(time.monotonic())
        busy = len(self.times) == 1 or self.status != 429
        self.send_response(self.status if busy else 200)
        self.send_header("Retry-After", "1")
        self.send_header("Content-Length", "0" if busy else "2")
        self.end_headers()
        self.wfile.write(b"" if busy else b"{}")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Answers]]:
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    handler: Any = type("Handler", (Answers,), {"times": []})
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.url = f"http://127.0.0.1:{running.server_port}/a"
    Thread(target=running.serve_forever, daemon=True).start()
    yield handler
    running.shutdown()
    running.server_close()


@pytest.mark.parametrize("status", [401, 403])
def test_who_is_denied_access_does_not_ask_again(answers: Any, status: int) -> None:
    answers.status = status
    with pytest.raises(UserError, match=rf"/a: the server denies access \(HTTP {status}\)\. Check the URL and your"):
        remote.patiently(answers.url, lambda fs, path, failures: remote._read(fs, path))
    assert len(answers.times) == 1


def test_a_busy_server_is_given_the_time_that_it_asks_for(answers: Any) -> None:
    answers.status = 429
    assert remote.patiently(answers.url, lambda fs, path, failures: remote._read(fs, path)) == b"{}"
    assert answers.times[1] - answers.times[0] >= 1
