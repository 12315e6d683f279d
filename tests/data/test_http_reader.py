"""Servers that send something else than what was asked for: told as such, read no further, and no shard."""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest

from pipeline.common.errors import UserError
from pipeline.data import http_reader, remote
from pipeline.data.manifest import load_dataset
from pipeline.data.shard_index import open_headers
from pipeline.data.tar import read_members

PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>" + bytes(5000)


class Odd(BaseHTTPRequestHandler):
    """Serves `data` as `answer` does."""

    url: ClassVar[str]
    data: ClassVar[bytes]
    answer: ClassVar[str]
    asked: ClassVar[Counter[str]]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        wanted = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        kind, own = self.answer, self.data
        self.asked[self.command] += 1
        if kind.startswith("to ") and self.path == "/a.tar":
            self.send_response(302)
            self.send_header("Location", kind[3:])
            self.send_header("Content-Length", "0")
            return self.end_headers()
        headers = {"Content-Type": "text/html" if own is PAGE else "application/x-tar"}
        if wanted and kind != "whole":
            start, end = int(wanted[1]), int(wanted[2]) + 1
            part, total = own[start:end], len(own)
            ranges = {"other": f"bytes {start + 512}-{end + 511}/{total}", "silent": None}
            given = ranges.get(kind, f"bytes {start}-{start + len(part) - 1}/{total}")
            headers |= {"Content-Range": given} if given else {}
            own = part + bytes(1 << 20) if kind == "more" else part
        self.send_response(206 if wanted and kind != "whole" else 200)
        if kind == "gzip":
            own, headers["Content-Encoding"] = gzip.compress(own), "gzip"
        for name, value in {**headers, "Content-Length": str(len(own))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            try:
                self.wfile.write(own)
                self.asked["bytes"] += len(own)
            except OSError:  # the reader has had enough
                pass
        return None

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def odd(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("WCORD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(remote, "BLOCK", 20_000)
    data = (shapes / "train-000000.tar").read_bytes()
    handler: Any = type("Handler", (Odd,), {"data": data, "answer": "right", "asked": Counter()})
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.url = f"http://127.0.0.1:{running.server_port}"
    Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield handler
    running.shutdown()
    running.server_close()


def fetched(odd: Any) -> bytes:
    path = remote.mirror(odd.url) / "a.tar"
    remote.fetch(path, len(odd.data))
    return path.read_bytes()


@pytest.mark.parametrize("answer", ["right", "more", "whole"])
def test_a_shard_is_whole_and_fetched_once(odd: Any, answer: str) -> None:
    odd.answer = answer
    assert fetched(odd) == odd.data
    if answer == "whole":
        assert odd.asked["GET"] == 2  # the first asks for a range, and reads no further than its answer
    if answer == "right":
        assert odd.asked["bytes"] == len(odd.data)


def test_the_headers_of_a_shard_without_ranges_are_read_from_one_copy(odd: Any) -> None:
    odd.answer = "whole"
    with open_headers(f"{odd.url}/a.tar", len(odd.data)) as file:
        assert len(list(read_members(file, lambda name: False))) == 200
    assert odd.asked["GET"] == 2


@pytest.mark.parametrize(
    ("answer", "message"),
    [("other", r"asked for bytes 0 to \d+, the server sent `bytes 512-"), ("silent", "no Content-Range")],
)
def test_another_part_is_no_part(odd: Any, answer: str, message: str) -> None:
    odd.answer = answer
    with pytest.raises(UserError, match=message):
        fetched(odd)


@pytest.mark.parametrize("answer", ["right", "whole"])
def test_a_page_is_no_shard(odd: Any, answer: str) -> None:
    odd.data, odd.answer = PAGE, answer
    with pytest.raises(UserError, match=r"a\.tar: the server sent a page \(text/html\), not the file\. Open the URL"):
        fetched(odd)
    with pytest.raises(UserError, match=r"dataset\.json: the server sent a page"):
        load_dataset(odd.url)
    assert odd.asked["GET"] < 5


def test_a_manifest_that_unpacks_to_too_much_is_refused(odd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_reader, "LARGEST_FILE", 1 << 22)
    odd.data, odd.answer = bytes(1 << 26), "gzip"
    with pytest.raises(UserError, match="larger than 4 MB and cannot be a manifest"):
        load_dataset(odd.url)
    odd.data = b"{}"
    assert remote.patiently(f"{odd.url}/x", lambda fs, path, failures: remote._read(fs, path)) == b"{}"


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/a", "file:///etc/passwd"])
def test_redirects_to_other_schemes_are_refused(odd: Any, location: str) -> None:
    odd.answer = f"to {location}"
    with pytest.raises(UserError, match=r"redirects to (ftp|file)://, which is rejected"):
        fetched(odd)


def test_redirects_from_public_hosts_to_private_ones_are_refused(odd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    odd.answer = "to /b.tar"
    assert fetched(odd) == odd.data
    private: Callable[[str | None], Any] = http_reader._is_private

    async def pretended(host: str | None) -> bool:
        return host != "localhost" and bool(await private(host))  # as if it were a public host

    monkeypatch.setattr(http_reader, "_is_private", pretended)
    odd.answer, port = f"to http://127.0.0.1:{odd.url.rpartition(':')[2]}/b.tar", odd.url.rpartition(":")[2]
    odd.url = f"http://localhost:{port}"
    with pytest.raises(UserError, match=r"redirects to the private address 127\.0\.0\.1, which is rejected"):
        fetched(odd)


def test_redirects_in_a_circle_end(odd: Any) -> None:
    odd.answer = "to /a.tar"
    with pytest.raises(UserError, match="more than 10 redirects"):
        fetched(odd)
