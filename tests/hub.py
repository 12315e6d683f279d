"""A stand-in of the Hugging Face Hub for tests: one data set or model, as huggingface_hub asks for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote, urlsplit

import pytest
from store import Store, serving

OWNER_NAME = "me/set"
MODEL = "me/student"
COMMIT = "0" * 40
CONVERTED = "1" * 40


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
            return self._answer([self._entry(one, self.folder) for one in found])
        self.path = f"/{path.removeprefix(f'datasets/{OWNER_NAME}/resolve/main/')}"
        return super().do_GET()

    def _entry(self, path: Path, folder: Path) -> dict[str, object]:
        name = path.relative_to(folder).as_posix()
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


class RepositoryHub(Hub):
    """Serves whole files of a repository at its commits; any other is unknown. `served` counts requests by file.

    kind: models or datasets. repository: its name. where: the start of the paths of its files.
    """

    kind: ClassVar[str]
    repository: ClassVar[str]
    where: ClassVar[str] = ""
    commit = COMMIT

    def revisions(self) -> dict[str, tuple[str, Path]]:
        """Name of a revision -> its commit, and the folder with its files."""
        return dict.fromkeys(("", "main", self.commit), (self.commit, self.folder))

    def card(self) -> dict[str, object]:
        """The metadata of its README."""
        return {}

    def do_GET(self) -> None:  # noqa: N802
        path = unquote(urlsplit(self.path).path).strip("/")
        self.served["all"] += 1
        api, files = f"api/{self.kind}/{self.repository}", f"{self.where}{self.repository}/resolve/"
        if path == "":
            return self._answer({})
        for name, (commit, folder) in self.revisions().items():
            listed = sorted(one for one in folder.rglob("*") if one.is_file())
            if path == (f"{api}/revision/{name}" if name else api):
                siblings = [{"rfilename": one.relative_to(folder).as_posix()} for one in listed]
                about = {"id": self.repository, "sha": commit, "siblings": siblings, "private": False, "tags": []}
                return self._answer(about | {"cardData": self.card()})
            if path == f"{api}/tree/{name}":
                return self._answer([self._entry(one, folder) for one in listed])
            inside = path.removeprefix(f"{files}{name}/")
            if inside != path and (folder / inside).is_file():
                self.served[inside] += 1
                return self._send((folder / inside).read_bytes(), commit)
        self.send_response(404)
        self.send_header("X-Error-Code", "RevisionNotFound" if path.startswith(f"{api}/") else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def _send(self, data: bytes, commit: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


class ModelHub(RepositoryHub):
    """Serves the folder as the model `me/student`."""

    kind, repository = "models", MODEL


class DatasetHub(RepositoryHub):
    """Serves the folder as the data set `me/set`, and a folder `converted` beside it as the hub's conversion."""

    kind, repository, where = "datasets", OWNER_NAME, "datasets/"
    metadata: ClassVar[dict[str, object]] = {}

    def revisions(self) -> dict[str, tuple[str, Path]]:
        converted = self.folder.with_name("converted")
        found = dict.fromkeys(("refs/convert/parquet", CONVERTED), (CONVERTED, converted)) if converted.is_dir() else {}
        return super().revisions() | found

    def card(self) -> dict[str, object]:
        return self.metadata


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
