"""The local page: what it answers, what it refuses, and that it works in a real browser."""

from __future__ import annotations

import base64
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import cv2
import numpy as np
import pytest
from browser import CHROMIUM, Browser
from command_line import call
from shapes_dataset import members

import pipeline
from pipeline.common.errors import UserError
from pipeline.inference import server as module
from pipeline.inference.server import app, bind

testclient = pytest.importorskip("starlette.testclient")
uvicorn = pytest.importorskip("uvicorn")


@pytest.fixture(scope="module")
def client(runs: Path) -> Any:
    return testclient.TestClient(app(runs / "student"), base_url="http://127.0.0.1")


def test_it_answers_with_class_and_neighbours_of_both_sides(client: Any, runs: Path, tmp_path: Path) -> None:
    assert [(one["role"], one["modality"]) for one in client.get("/about").json()] == [
        ("student", "depth"),
        ("teacher", "rgb"),
    ]
    kept = np.load(runs / "student" / "evaluation" / "embeddings.npz", allow_pickle=False)
    for role, member in (("student", "depth.png"), ("teacher", "rgb.jpg")):
        key = str(kept["keys"][4])
        data = members(int(key[1:]))[member]
        found = client.post(f"/look/{role}", content=data).json()
        assert {side: about["modality"] for side, about in found["neighbours"].items()} == {
            "student": "depth",
            "teacher": "rgb",
        }
        nearest = found["neighbours"][role]["samples"]
        assert nearest[0]["key"] == key  # it is one of the samples itself
        assert nearest[0]["similarity"] == pytest.approx(1, abs=2e-3)
        assert [s["similarity"] for s in nearest] == sorted((s["similarity"] for s in nearest), reverse=True)
        picture = client.get(f"/picture/{role}/{nearest[0]['index']}")
        assert cv2.imdecode(np.frombuffer(picture.content, np.uint8), 1).shape == (72, 72, 3)
    (tmp_path / "x.png").write_bytes(members(100)["depth.png"])
    wanted = pipeline.load(runs / "student").predict(tmp_path / "x.png")[0]
    found = client.post("/look/student", content=members(100)["depth.png"]).json()
    assert {c["name"]: c["probability"] for c in found["classes"]} == pytest.approx(wanted.probabilities, abs=1e-5)
    assert base64.b64decode(found["picture"].partition(",")[2]).startswith(b"\x89PNG")


def test_what_it_refuses(client: Any, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = client.post("/look/student", content=members(0)["rgb.jpg"])
    assert (wrong.status_code, wrong.json()["error"][:21]) == (422, "a JPEG with 3 channel")
    assert client.post("/look/student", content=str(runs / "student" / "config.yaml")).status_code == 422  # no path
    assert client.post("/look/nobody", content=b"").status_code == 404
    for place in ("student/9999", "nobody/0", "student/-1", "..%2f..%2fconfig.yaml/0", "student/../config.yaml"):
        assert client.get(f"/picture/{place}").status_code == 404
    monkeypatch.setattr(module, "LIMIT", 1000)
    assert client.post("/look/student", content=b"x" * 1001).status_code == 413
    assert client.post("/look/student", content=iter([b"x" * 600] * 3)).status_code == 413  # no length told
    other = testclient.TestClient(app(runs / "student"), base_url="http://evil.example")
    assert other.get("/").status_code == 400


@pytest.mark.parametrize(
    ("host", "given", "answer"),
    [("::1", "[::1]:8000", 200), ("::1", "[::1]", 200), ("::1", "localhost:8000", 200), ("::1", "[::2]:8000", 400),
     ("::1", "[::1].evil.example", 400), ("::1", "evil.example:8000", 400), ("::1", "", 400), ("Box", "box:8000", 200),
     ("127.0.0.1", "127.0.0.1:8000", 200), ("127.0.0.1", "127.0.0.1.evil.example", 400), ("::", "[::9]:1", 200)],
)  # fmt: skip
def test_hosts_of_any_kind_are_served_and_no_others(
    host: str, given: str, answer: int, runs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    served: list[Any] = []
    monkeypatch.setattr(module, "bind", lambda host, port: None)
    monkeypatch.setattr(uvicorn.Server, "run", lambda server, sockets: served.append(server.config.app))
    monkeypatch.setattr(module, "Desk", lambda run: None)
    caplog.set_level(logging.INFO)
    module.serve(runs / "student", host, 8000)
    assert testclient.TestClient(served[0]).get("/", headers={"Host": given}).status_code == answer
    address = caplog.messages[0].split(": ", 1)[1].split()[0]
    assert (urlsplit(address).hostname, urlsplit(address).port) == (host.lower(), 8000)


def test_a_page_is_served_on_ipv6(runs: Path) -> None:
    try:
        listener = bind("::1", 0)
    except UserError:
        pytest.skip("no IPv6 here")
    server = uvicorn.Server(uvicorn.Config(app(runs / "student", ("::1",)), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    with urlopen(module.url("::1", listener.getsockname()[1])) as answer:
        assert answer.status == 200
    server.should_exit = True
    thread.join(20)


def test_a_run_alone_shows_classes_and_its_own_kind(runs: Path) -> None:
    alone = testclient.TestClient(app(runs / "teacher" / "student"), base_url="http://localhost")
    assert [one["modality"] for one in alone.get("/about").json()] == ["rgb"]
    found = alone.post("/look/student", content=members(0)["rgb.jpg"]).json()
    assert len(found["classes"]) == 3
    assert found["neighbours"] == {}


def test_a_busy_port_is_said_before_anything_is_loaded(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert call("serve", runs / "nowhere", "--port", port) == 2
        assert f"port {port} is busy; choose another one: --port {port + 1}" in capsys.readouterr().err
    assert call("serve", runs / "student", "--port", 99999) == 2
    assert "cannot listen on 127.0.0.1:99999" in capsys.readouterr().err


@pytest.fixture
def address(runs: Path) -> Iterator[str]:
    listener: socket.socket = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app(runs / "student"), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    server.should_exit = True
    thread.join(20)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")
def test_a_file_is_dropped_in_a_real_browser(address: str, tmp_path: Path) -> None:
    good, bad = tmp_path / "map.png", tmp_path / "photo.png"
    good.write_bytes(members(97)["depth.png"])
    bad.write_bytes(members(97)["rgb.jpg"])
    with Browser(tmp_path / "profile") as browser:
        browser.call("Page.navigate", url=address)
        wait(browser, "document.querySelectorAll('#sides input').length == 2")
        choose(browser, good)
        wait(browser, "document.querySelectorAll('.bar').length == 3")
        wait(browser, "document.querySelectorAll('figure img').length == 12")
        wait(browser, "[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        assert browser.run("document.querySelector('h2').textContent") == "Nearest by depth (student)"
        browser.picture(tmp_path / "page.png")
        browser.run(DROP)
        wait(browser, "document.querySelector('#picture').naturalWidth == 72")
        assert browser.errors == []
        browser.point_at("#sides input", click=True)
        choose(browser, bad)
        wait(browser, "document.querySelector('#error').textContent.includes('a JPEG with 3 channels')")
        assert browser.run("document.querySelector('#answer').hidden")


DROP = """(async () => {
  document.querySelectorAll('#sides input')[1].click();
  const dropped = new DataTransfer(), photo = await (await fetch('/picture/teacher/0')).blob();
  dropped.items.add(new File([photo], 'x.png'));
  document.getElementById('drop').dispatchEvent(new DragEvent('drop', {dataTransfer: dropped, bubbles: true}));
})()"""
"""A photo is dropped on the page by the hand of the mouse."""


def choose(browser: Browser, path: Path) -> None:
    root = browser.call("DOM.getDocument")["root"]["nodeId"]
    node = browser.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    browser.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])


def wait(browser: Browser, condition: str) -> None:
    end = time.monotonic() + 60
    while not browser.run(condition):
        assert time.monotonic() < end, json.dumps(condition)
        time.sleep(0.1)
