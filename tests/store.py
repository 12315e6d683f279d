"""A web server of shards for tests: ranges, versions, and a count of what was asked of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar


class Store(BaseHTTPRequestHandler):
    """Serves a folder. served: bytes and requests so far. versions: file name -> ETag."""

    url: ClassVar[str]
    folder: ClassVar[Path]
    served: ClassVar[Counter[str]]
    versions: ClassVar[dict[str, str]]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.folder / self.path.lstrip("/")
        if not path.is_file():
            return self.send_error(404)
        data, wanted = path.read_bytes(), self.headers.get("Range", "")
        size, start = len(data), "0"
        if wanted:
            start, _, stop = wanted.removeprefix("bytes=").partition("-")
            data = data[int(start) : int(stop or len(data) - 1) + 1]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(data)))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{int(start) + len(data) - 1}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", self.versions.get(path.name, "1"))
        self.end_headers()
        if self.command == "GET":
            self.served["bytes"] += len(data)
            self.served["requests"] += 1
            self.wfile.write(data)
        return None

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(folder: Path, handler: type[Store] = Store) -> Iterator[type[Store]]:
    """A server of a folder, until the end of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    kind: type[Store] = type("Handler", (handler,), {"folder": folder, "served": Counter(), "versions": {}})
    running = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    kind.url = f"http://127.0.0.1:{running.server_port}"
    Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield kind
    running.shutdown()
    running.server_close()
