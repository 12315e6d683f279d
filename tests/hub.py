"""A stand-in of the Hugging Face Hub for tests: one data set or model, as huggingface_hub asks for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from store import Store, serving

OWNER_NAME = "me/set"
MODEL = "me/student"
COMMIT = "0" * 40


class Hub(Store):
    """Serves the folder as the data set `me/set`: its description, its tree, and its files in ranges."""

    def do_GET(self) -> None:  # noqa: N802
        path = urlsplit(self.path).path.strip("/")
        api = f"api/datasets/{OWNER_NAME}"
        if path in (api, f"{api}/revision/main"):
            return self._answer({"id": OWNER_NAME, "sha": COMMIT, "siblings": [], "private": False, "tags": []})
        if path.startswith(f"{api}/tree/"):
            within = self.folder / path.removeprefix(f"{api}/tree/").partition("/")[2]
            found = sorted(within.iterdir()) if within.is_dir() else []
            return self._answer([self._entry(one) for one in found])
        self.path = f"/{path.removeprefix(f'datasets/{OWNER_NAME}/resolve/main/')}"
        return super().do_GET()

    def _entry(self, path: Path) -> dict[str, object]:
        name = path.relative_to(self.folder).as_posix()
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": "", "size": 0}
        oid = hashlib.sha1(path.read_bytes()).hexdigest()
        return {"type": "file", "path": name, "oid": oid, "size": path.stat().st_size}

    def _answer(self, document: object) -> None:
        data = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


class ModelHub(Hub):
    """Serves the folder as the model `me/student`; any other is unknown. `served` counts the requests of each file."""

    commit = COMMIT

    def do_GET(self) -> None:  # noqa: N802
        path = urlsplit(self.path).path.strip("/")
        api, files = f"api/models/{MODEL}", f"{MODEL}/resolve/{self.commit}/"
        self.served["all"] += 1
        if path in ("", api, f"{api}/revision/main", f"{api}/revision/{self.commit}"):
            siblings = [{"rfilename": one.relative_to(self.folder).as_posix()} for one in self._files()]
            return self._answer({"id": MODEL, "sha": self.commit, "siblings": siblings, "private": False, "tags": []})
        if path == f"{api}/tree/{self.commit}":
            return self._answer([self._entry(one) for one in self._files()])
        file = self.folder / path.removeprefix(files)
        if path.startswith(files) and file.is_file():
            self.served[path.removeprefix(files)] += 1
            return self._send(file.read_bytes())
        missing = "RevisionNotFound" if path.startswith(f"{api}/") else "RepoNotFound"
        self.send_response(404)
        self.send_header("X-Error-Code", missing)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def _files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def _send(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Repo-Commit", self.commit)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


@contextmanager
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Store] = Hub) -> Iterator[type[Store]]:
    """A hub with the files of a folder, until the end of the block."""
    with serving(folder, kind) as running:
        use_endpoint(running.url, monkeypatch)
        yield running


def use_endpoint(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let huggingface_hub ask here. It reads HF_ENDPOINT when it is imported only."""
    from huggingface_hub import HfFileSystem, constants

    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    HfFileSystem.clear_instance_cache()
