"""The local page under many, slow, broken and foreign clients."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from shapes_dataset import members

from pipeline.inference import server as module
from pipeline.inference import server_guard
from pipeline.inference.server import app, bind
from pipeline.inference.server_guard import Room, impatient_protocol

testclient = pytest.importorskip("starlette.testclient")
uvicorn = pytest.importorskip("uvicorn")


@pytest.fixture
def port(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(server_guard, "PATIENCE", 0.6)
    listener: socket.socket = bind("127.0.0.1", 0)
    config = uvicorn.Config(app(runs / "student"), http=impatient_protocol(), log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(20)


def ask(port: int, data: bytes, close: bool = False) -> bytes:
    """Send bytes; what the server answers until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
        line.sendall(data)
        if close:
            return b""
        answer = b""
        while piece := line.recv(65536):
            answer += piece
        return answer


def post(size: int, body: bytes, extra: str = "") -> bytes:
    head = f"POST /look/student HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {size}\r\n{extra}\r\n"
    return head.encode() + body


def test_silent_and_slow_clients_are_sent_away_and_others_served(port: int) -> None:
    begun = time.monotonic()
    assert ask(port, b"") == b""
    assert ask(port, b"GET / HTTP/1.1\r\nHost: 127.0.0") == b""
    assert b"408" in ask(port, post(100, b"slow")).partition(b"\r\n")[0]
    assert time.monotonic() - begun < 8
    photo = members(0)["depth.png"]
    answer = ask(port, post(len(photo), photo))  # the connection is closed after it
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in answer.lower()


def test_broken_off_uploads_and_absurd_paths_leave_no_traceback(port: int, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(5):
        ask(port, post(10_000, b"half"), close=True)
    paths = [
        "/picture/student/" + "9" * 5000,
        "/picture/%00/1",
        "/look/%ff%fe",
        "/" + "a/" * 5000,
        "/picture/student/-1",
    ]
    for path in [*paths, "/picture/student/\u0663", "//", "/%2e%2e/%2e%2e/etc/passwd"]:
        answer = ask(port, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        assert answer[9:10] == b"4", (path, answer[:100])
    time.sleep(0.2)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://127.0.0.1", 200), ("http://evil.example", 403), ("null", 403), ("http://127.0.0.1:1", 403), ("[", 403)],
)
def test_other_pages_may_not_ask(origin: str, status: int, runs: Path) -> None:
    client = testclient.TestClient(app(runs / "student"), base_url="http://127.0.0.1")
    found = client.post("/look/student", content=members(0)["depth.png"], headers={"Origin": origin})
    assert found.status_code == status


def test_uploads_share_a_room() -> None:
    async def all_of_them() -> int:
        room, held, most = Room(100), 0, 0

        async def upload(size: int) -> None:
            nonlocal held, most
            async with room.taken(size):
                held += size
                most = max(most, held)
                await asyncio.sleep(0)
                held -= size

        await asyncio.gather(*(upload(1 + number * 7 % 60) for number in range(200)))
        assert (held, room.left) == (0, 100)
        return most

    assert 60 <= asyncio.run(all_of_them()) <= 100


def test_an_upload_that_fails_gives_its_room_back(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 1000)
    client: Any = testclient.TestClient(app(runs / "student"), base_url="http://127.0.0.1")
    for _ in range(2 * module.UPLOADS):
        assert client.post("/look/student", content=iter([b"x" * 600] * 3)).status_code == 413
        assert client.post("/look/student", content=iter([b"x" * 600])).status_code == 422
        assert client.post("/look/student", content=b"x" * 1001).status_code == 413
