"""Where a packing is written: a local folder, or a store behind a URL that fsspec knows, such as `s3://bucket/set`."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.files import remove_stale_parts, write_atomic
from pipeline.data.dataset import Shard
from pipeline.data.foreign import PACKING
from pipeline.data.manifest import write_shard
from pipeline.data.remote import file_system, patiently, refuse_secrets

Samples = Iterable[tuple[str, Mapping[str, bytes]]]


def target_of(out: str) -> Target:
    """The target that a path or a URL names.

    Raises:
        UserError: It is a URL to which nothing can be written, or that holds a secret.
    """
    scheme, mark, rest = out.partition("://")
    if not mark:
        return Folder(Path(out))
    if scheme in ("file", "local"):
        return Folder(Path(rest))
    if scheme in ("http", "https"):
        raise UserError(f"{out}: a web server takes no files. Pack into a folder or a store, such as s3://bucket/set.")
    refuse_secrets(out)
    try:
        file_system(out)
    except ValueError as error:
        raise UserError(f"{out}: {error}. Pack into a folder or a store, such as s3://bucket/set.") from None
    return Store(out.rstrip("/"))


class Target(ABC):
    """Files by name; those of the state of a packing are in a folder of their own. Under a name is a whole file."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """The bytes of each file that is there."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """The bytes of one file; None where it is not there."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A small file; FileNotFoundError where it is not there."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write a small file, or replace it."""

    @abstractmethod
    def write_shard(self, name: str, samples: Samples) -> Shard:
        """Write a shard, or replace it."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, where it is there."""

    @abstractmethod
    def tidy(self) -> None:
        """Remove what writers left that were killed."""


class Folder(Target):
    """A folder of this machine, or one that machines share."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def sizes(self) -> dict[str, int]:
        """The bytes of each file that is there."""
        found = [*self.path.glob("*"), *(self.path / PACKING).glob("*")]
        sizes = {}
        for path in found:
            with suppress(FileNotFoundError):  # other writers come and go
                sizes[path.relative_to(self.path).as_posix()] = path.stat().st_size
        return sizes

    def size(self, name: str) -> int | None:
        """The bytes of one file; None where it is not there."""
        with suppress(FileNotFoundError):
            return (self.path / name).stat().st_size
        return None

    def read(self, name: str) -> bytes:
        """A small file; FileNotFoundError where it is not there."""
        return (self.path / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, or replace it."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)

    def write_shard(self, name: str, samples: Samples) -> Shard:
        """Write a shard, or replace it."""
        return write_shard(self.path / name, samples)

    def remove(self, name: str) -> None:
        """Remove a file, where it is there."""
        (self.path / name).unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove what writers left that were killed."""
        remove_stale_parts(self.path)
        remove_stale_parts(self.path / PACKING)


class Store(Target):
    """A folder of a store. Shards are written in a temporary folder, and removed there once they are uploaded."""

    def __init__(self, url: str) -> None:
        self.url = url

    def sizes(self) -> dict[str, int]:
        """The bytes of each file that is there."""

        def listed(fs: Any, path: str, failures: int) -> dict[str, int]:
            fs.invalidate_cache()  # other machines write, too
            found = fs.find(path, detail=True)
            return {name.removeprefix(f"{path}/"): int(about["size"]) for name, about in found.items()}

        with suppress(FileNotFoundError):
            return patiently(self.url, listed)
        return {}

    def size(self, name: str) -> int | None:
        """The bytes of one file; None where it is not there."""

        def asked(fs: Any, path: str, failures: int) -> int:
            fs.invalidate_cache()
            return int(fs.info(path)["size"])

        with suppress(FileNotFoundError):
            return patiently(f"{self.url}/{name}", asked)
        return None

    def read(self, name: str) -> bytes:
        """A small file; FileNotFoundError where it is not there."""
        return patiently(f"{self.url}/{name}", lambda fs, path, failures: bytes(fs.cat_file(path)))

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, or replace it."""

        def send(fs: Any, path: str, failures: int) -> None:
            fs.pipe_file(path, data)

        self._send(name, send)

    def write_shard(self, name: str, samples: Samples) -> Shard:
        """Write a shard, or replace it."""
        with tempfile.TemporaryDirectory(prefix="wcord-pack-") as folder:
            path = Path(folder) / name
            shard = write_shard(path, samples)

            def send(fs: Any, remote: str, failures: int) -> None:
                fs.put_file(str(path), remote)

            self._send(name, send)
        return shard

    def remove(self, name: str) -> None:
        """Remove a file, where it is there."""

        def drop(fs: Any, path: str, failures: int) -> None:
            fs.rm_file(path)

        with suppress(FileNotFoundError):
            patiently(f"{self.url}/{name}", drop)

    def tidy(self) -> None:
        """Nothing to do: an object is there once it is whole."""

    def _send(self, name: str, send: Callable[[Any, str, int], None]) -> None:
        try:
            patiently(f"{self.url}/{name}", send)
        except FileNotFoundError:
            raise UserError(f"{self.url}: nothing can be written there. Create the bucket first.") from None
