"""Faults of a web server: each ends within 60 s in the right data or one clear error, and little is fetched twice."""

from __future__ import annotations

import gzip
import random
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Thread
from typing import Any, ClassVar

import pytest

from pipeline.common.errors import UserError
from pipeline.data import remote
from pipeline.data.manifest import load_dataset

SECONDS = 60.0
SHARE = 1.2
"""Largest number of bytes of a shard that are served, in sizes of the shard."""

BUFFERS = 6 << 20
"""Bytes that a server can send to a reader that no longer reads: the largest receive buffer of Linux."""

PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>" + bytes(5000)


class Reply:
    """A request, and what the server sends to answer it."""

    def __init__(self, server: Any, stream: Any, path: str, start: int, end: int, ranged: bool, head: bool) -> None:
        self.server, self.stream, self.path, self.head = server, stream, path, head
        self.start, self.end, self.ranged = start, end, ranged
        self.part = server.data[start:end]

    def send(self, status: int, body: bytes = b"", **headers: str | None) -> None:
        """Send a response; a header that is None is omitted."""
        given = {"Content_Length": str(len(body)), **headers}
        lines = [f"HTTP/1.1 {status} X", *(f"{k.replace('_', '-')}: {v}" for k, v in given.items() if v is not None)]
        self.raw("\r\n".join([*lines, "Connection: close", "\r\n"]).encode())
        if not self.head:
            self.body(body)

    def raw(self, data: bytes) -> None:
        self.stream.wfile.write(data)
        self.stream.wfile.flush()

    def body(self, data: bytes) -> None:
        """Send bytes of a body, which are counted."""
        for at in range(0, len(data), 65_536):
            self.raw(data[at : at + 65_536])
            self.server.served["bytes"] += len(data[at : at + 65_536])

    @property
    def range(self) -> str:
        return f"bytes {self.start}-{self.start + len(self.part) - 1}/{len(self.server.data)}"

    def right(self, **headers: str | None) -> None:
        """The right answer, with other headers."""
        own: dict[str, str | None] = {"Content_Range": self.range} if self.ranged else {}
        self.send(206 if self.ranged else 200, self.part, **{**own, **headers})

    def begin(self, **headers: str | None) -> None:
        """The headers of the right answer alone."""
        part, self.part = self.part, b""
        own = {
            "Content_Length": str(len(part)),
            "Content_Range": f"bytes {self.start}-{self.end - 1}/{len(self.server.data)}",
        }
        self.send(206, b"", **{**own, **headers})
        self.part = part

    def reset(self) -> None:
        """Close the connection with a reset."""
        self.stream.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.stream.connection.close()


def endless(reply: Reply) -> None:
    reply.begin(Content_Length=None)
    reply.body(reply.part)
    while True:
        reply.body(bytes(65_536))


def dripping(reply: Reply) -> None:
    reply.begin()
    for byte in reply.part:
        reply.body(bytes([byte]))
        time.sleep(0.3)


def stalled(reply: Reply, share: float) -> None:
    """Send the headers and a part of the body, and then nothing."""
    if share >= 0:
        reply.begin()
        reply.body(reply.part[: int(share * len(reply.part))])
    time.sleep(1.2)


def cut(reply: Reply, share: float = 0.5, reset: bool = False) -> None:
    reply.begin()
    reply.body(reply.part[: int(share * len(reply.part))])
    if reset:
        reply.reset()


def chunked(reply: Reply, first: bytes) -> None:
    reply.begin(Content_Length=None, Transfer_Encoding="chunked")
    reply.raw(first)


def longer(reply: Reply) -> None:
    reply.begin()
    reply.body(reply.part + bytes(100_000))


def status(code: int, body: bytes = b"", **headers: str) -> Callable[[Reply], None]:
    return lambda reply: reply.send(code, body, **headers)


def ranged(value: str | None) -> Callable[[Reply], None]:
    """The right bytes, with this Content-Range."""
    return lambda reply: reply.right(Content_Range=value)


GONE, DENIED, TRIED = "does not exist", "denies access", "attempts failed"
FAULTS: dict[str, tuple[Callable[[Reply], None], str]] = {
    "to_another_scheme": (status(301, Location="ftp://127.0.0.1/a.tar"), "redirects to ftp://"),
    "to_a_file": (status(302, Location="file:///etc/passwd"), "redirects to file://"),
    "to_itself": (status(307, Location="/a.tar"), "more than 10 redirects"),
    "redirect_without_location": (status(302), ""),
    "redirect_to_nothing": (status(301, Location="http://"), ""),
    **{f"status_{code}": (status(code), DENIED) for code in (401, 403)},
    "status_404": (status(404), GONE),
    "status_410": (status(410), GONE),
    **{f"status_{code}": (status(code), TRIED) for code in (400, 416, 429, 500, 501, 502, 503, 504)},
    "status_429_with_pause": (status(429, Retry_After="1"), TRIED),
    "status_429_with_a_year": (status(429, Retry_After="31536000"), "1 attempt failed"),
    "status_503_with_a_date": (status(503, Retry_After="Wed, 21 Oct 2065 07:28:00 GMT"), TRIED),
    "status_503_with_a_negative_pause": (status(503, Retry_After="-5"), TRIED),
    "status_204": (status(204), ""),
    "status_999": (status(999), TRIED),
    "page": (status(200, PAGE, Content_Type="text/html"), "sent a page"),
    "page_as_range": (lambda r: r.send(206, PAGE, Content_Range=r.range, Content_Type="text/html"), "sent a page"),
    "whole_file": (lambda r: r.send(200, r.server.data), "="),
    "no_content_range": (ranged(None), "no Content-Range"),
    "other_range": (ranged("bytes 512-1023/99999"), "the server sent `bytes 512-"),
    "range_in_letters": (ranged("bytes a-b/c"), "the server sent `bytes a-b/c"),
    "range_of_lines": (ranged("lines 0-9/10"), "the server sent `lines"),
    "range_of_a_negative_start": (ranged("bytes -5-9/10"), TRIED),
    "multipart": (lambda r: r.send(206, b"--x\r\n" + r.part, Content_Type="multipart/byteranges; boundary=x"), TRIED),
    "length_too_small": (lambda r: r.right(Content_Length=str(len(r.part) // 2)), ""),
    "length_too_large": (lambda r: r.right(Content_Length=str(2 * len(r.part))), ""),
    "length_negative": (lambda r: r.right(Content_Length="-1"), TRIED),
    "length_in_letters": (lambda r: r.right(Content_Length="many"), TRIED),
    "no_length": (lambda r: r.right(Content_Length=None), "="),
    "cut_in_the_middle": (cut, TRIED),
    "cut_before_the_body": (lambda r: cut(r, 0), TRIED),
    "reset_in_the_middle": (lambda r: cut(r, reset=True), TRIED),
    "reset_at_once": (lambda r: r.reset(), TRIED),
    "closed_at_once": (lambda r: None, TRIED),
    "longer_than_said": (longer, ""),
    "gzip": (lambda r: r.right(Content_Encoding="gzip"), TRIED),
    "packed_with_gzip": (
        lambda r: r.send(206, gzip.compress(r.part), Content_Range=r.range, Content_Encoding="gzip"), TRIED),
    "chunks_without_a_size": (lambda r: chunked(r, b"zz\r\n" + r.part), TRIED),
    "chunks_without_an_end": (lambda r: chunked(r, b"5\r\nabcde\r\n"), TRIED),
    "chunk_of_a_huge_size": (lambda r: chunked(r, b"ffffffffffffffffff\r\n" + r.part[:100]), ""),
    "endless": (endless, "="),
    "drip": (dripping, TRIED),
    "stalled_before_the_headers": (lambda r: stalled(r, -1), TRIED),
    "stalled_after_the_headers": (lambda r: stalled(r, 0), TRIED),
    "stalled_in_the_middle": (lambda r: stalled(r, 0.5), TRIED),
    "garbage": (lambda r: r.raw(bytes(range(256)) * 20), TRIED),
    "tls": (lambda r: r.raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)), TRIED),
    "huge_header": (lambda r: r.right(X_Long="x" * 1_000_000), TRIED),
    "many_headers": (lambda r: r.right(**{f"X_{n}": "x" * 100 for n in range(20_000)}), TRIED),
    "headers_without_an_end": (lambda r: r.raw(b"HTTP/1.1 206 X\r\nA: b\r\n"), TRIED),
    "only_a_version": (lambda r: r.raw(b"HTTP/9.9\r\n\r\n"), TRIED),
}  # fmt: skip
"""Name -> what answers a request; pattern of the error if it answers every request, `=` if the data is read anyway."""


@dataclass
class Sick:
    """A server of one file, the requests of which a fault answers: all from number `first`, or only that one."""

    url: str
    data: bytes
    fault: Callable[[Reply], None]
    first: int
    always: bool
    served: Counter[str]


class Handler(StreamRequestHandler):
    """Answers one request of a connection."""

    about: ClassVar[Sick]

    def handle(self) -> None:
        about = self.about
        try:
            command, path = self.rfile.readline().decode("latin-1").split()[:2]
            headers = {}
            while (line := self.rfile.readline().strip()) and b":" in line:
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            wanted = re.match(r"bytes=(\d+)-(\d+)", headers.get("range", ""))
            start, end = (int(wanted[1]), int(wanted[2]) + 1) if wanted else (0, len(about.data))
            reply = Reply(about, self, path, start, end, wanted is not None, command == "HEAD")
            number = about.served["requests"]
            about.served["requests"] += 1
            bad = number >= about.first if about.always else number == about.first
            about.fault(reply) if bad else reply.right()
        except (OSError, ValueError, IndexError):  # the reader has had enough
            pass


@pytest.fixture
def sick(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sick]:
    """Time-outs and pauses are a small part of the real ones, a block is a tenth of the shard."""
    monkeypatch.setenv("WCORD_CACHE", str(tmp_path / "cache"))
    data = (shapes / "train-000000.tar").read_bytes() + random.Random(0).randbytes(16_000_000)
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(remote, "STALLED", 0.5)
    monkeypatch.setattr(remote, "LAST_START", 2.0)
    monkeypatch.setattr(remote, "BLOCK", len(data) // 10)
    about = Sick("", data, lambda reply: None, 0, True, Counter())
    ThreadingTCPServer.daemon_threads = True
    running = ThreadingTCPServer(("127.0.0.1", 0), type("Own", (Handler,), {"about": about}))
    about.url = f"http://127.0.0.1:{running.server_address[1]}"
    Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield about
    running.shutdown()
    running.server_close()


def attempt(sick: Sick) -> tuple[str, bool]:
    """Fetch the shard: the error, and whether the right data is there."""
    path = remote.mirror(sick.url) / "a.tar"
    try:
        remote.fetch(path, len(sick.data))
    except (UserError, FileNotFoundError, ValueError) as error:
        return str(error), False
    return "", path.read_bytes() == sick.data


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_stays_is_named(sick: Sick, name: str) -> None:
    """Halfway through the shard, the server answers nothing but this."""
    (sick.fault, message), sick.first = FAULTS[name], 5
    begun = time.monotonic()
    said, right = attempt(sick)
    assert right or said
    assert message in ("", "=") if right else message != "="
    if said:
        assert re.search(message, said)
        assert sick.url in said
        assert len(said) < 600
        assert "\n" not in said
    assert time.monotonic() - begun < SECONDS
    assert sick.served["bytes"] <= SHARE * len(sick.data) + repeated(sick, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_after_a_fault_that_passes_the_shard_is_right(sick: Sick, name: str) -> None:
    (sick.fault, message), sick.first, sick.always = FAULTS[name], 5, False
    final = re.search("redirects|page|denies|exist|1 attempt", message)
    begun = time.monotonic()
    said, right = attempt(sick)
    assert right or (said and final)
    assert time.monotonic() - begun < SECONDS
    assert sick.served["bytes"] <= SHARE * len(sick.data) + repeated(sick, name)


def repeated(sick: Sick, name: str) -> float:
    """Bytes that must be fetched again: a server without ranges begins again, from the start, once.

    Every other attempt asks for half as much as the one before, so the sum over all attempts is below two blocks, which
    is a fifth of the shard here; and 8 MB blocks of a larger shard are a smaller share. What the reader leaves in the
    buffers of sockets counts as served, too: for an endless body, in each request.
    """
    whole = name in ("whole_file", "page", "status_204", "redirect_without_location")
    buffers = BUFFERS * (6 if name == "endless" else 1)
    return buffers + len(sick.data) * (1 if whole else 0.1)


def test_all_attempts_end_within_a_minute() -> None:
    pauses = sum(remote.FIRST_PAUSE * 2**failures for failures in range(remote.RETRIES - 1))
    assert pauses <= remote.LAST_START  # as many attempts as stated, if each fails at once
    assert remote.LAST_START + 3 * remote.STALLED <= SECONDS


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_manifest_with_a_fault_is_named(sick: Sick, name: str) -> None:
    """What is sent is no manifest, so each of the faults ends in an error."""
    (sick.fault, _), sick.first = FAULTS[name], 0
    with pytest.raises(UserError) as raised:
        load_dataset(sick.url)
    assert len(str(raised.value)) < 1000
