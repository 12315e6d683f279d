"""The output location of a packing: a local folder, or object storage with a URL of fsspec, such as `s3://bucket/set`."""

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
    """The target for a path or a URL.

    Raises:
        UserError: The URL does not support writing, or contains a secret.
    """
    scheme, mark, rest = out.partition("://")
    if not mark:
        return Folder(Path(out))
    if scheme in ("file", "local"):
        return Folder(Path(rest))
    if scheme in ("http", "https"):
        raise UserError(
            f"{out}: web servers are read-only. Pack into a folder or object storage, such as s3://bucket/set."
        )
    refuse_secrets(out)
    try:
        file_system(out)
    except ValueError as error:
        raise UserError(f"{out}: {error}. Pack into a folder or object storage, such as s3://bucket/set.") from None
    return Store(out.rstrip("/"))


class Target(ABC):
    """Files by name, with the state of a packing in its own folder. A file that exists is complete."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """File -> size in bytes, for all existing files."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Size of a file in bytes; None if it does not exist."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The content of a small file. Raises FileNotFoundError if it does not exist."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write or replace a small file."""

    @abstractmethod
    def write_shard(self, name: str, samples: Samples) -> Shard:
        """Write or replace a shard."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file if it exists."""

    @abstractmethod
    def tidy(self) -> None:
        """Remove the temporary files of killed writers."""


class Folder(Target):
    """A folder on this machine, or a shared one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def sizes(self) -> dict[str, int]:
        """File -> size in bytes, for all existing files."""
        found = [*self.path.glob("*"), *(self.path / PACKING).glob("*")]
        sizes = {}
        for path in found:
            with suppress(FileNotFoundError):  # other writers may remove files
                sizes[path.relative_to(self.path).as_posix()] = path.stat().st_size
        return sizes

    def size(self, name: str) -> int | None:
        """Size of a file in bytes; None if it does not exist."""
        with suppress(FileNotFoundError):
            return (self.path / name).stat().st_size
        return None

    def read(self, name: str) -> bytes:
        """The content of a small file. Raises FileNotFoundError if it does not exist."""
        return (self.path / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """Write or replace a small file."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)

    def write_shard(self, name: str, samples: Samples) -> Shard:
        """Write or replace a shard."""
        return write_shard(self.path / name, samples)

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        (self.path / name).unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove the temporary files of killed writers."""
        remove_stale_parts(self.path)
        remove_stale_parts(self.path / PACKING)


class Store(Target):
    """A folder in object storage. Shards are written to a temporary folder, uploaded, and then removed from it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def sizes(self) -> dict[str, int]:
        """File -> size in bytes, for all existing files."""

        def listed(fs: Any, path: str, failures: int) -> dict[str, int]:
            fs.invalidate_cache()  # other machines write as well
            found = fs.find(path, detail=True)
            return {name.removeprefix(f"{path}/"): int(about["size"]) for name, about in found.items()}

        with suppress(FileNotFoundError):
            return patiently(self.url, listed)
        return {}

    def size(self, name: str) -> int | None:
        """Size of a file in bytes; None if it does not exist."""

        def asked(fs: Any, path: str, failures: int) -> int:
            fs.invalidate_cache()
            return int(fs.info(path)["size"])

        with suppress(FileNotFoundError):
            return patiently(f"{self.url}/{name}", asked)
        return None

    def read(self, name: str) -> bytes:
        """The content of a small file. Raises FileNotFoundError if it does not exist."""
        return patiently(f"{self.url}/{name}", lambda fs, path, failures: bytes(fs.cat_file(path)))

    def write(self, name: str, data: bytes) -> None:
        """Write or replace a small file."""

        def send(fs: Any, path: str, failures: int) -> None:
            fs.pipe_file(path, data)

        self._send(name, send)

    def write_shard(self, name: str, samples: Samples) -> Shard:
        """Write or replace a shard."""
        with tempfile.TemporaryDirectory(prefix="wcord-pack-") as folder:
            path = Path(folder) / name
            shard = write_shard(path, samples)

            def send(fs: Any, remote: str, failures: int) -> None:
                fs.put_file(str(path), remote)

            self._send(name, send)
        return shard

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""

        def drop(fs: Any, path: str, failures: int) -> None:
            fs.rm_file(path)

        with suppress(FileNotFoundError):
            patiently(f"{self.url}/{name}", drop)

    def tidy(self) -> None:
        """Nothing to do: objects only appear once they are complete."""

    def _send(self, name: str, send: Callable[[Any, str, int], None]) -> None:
        try:
            patiently(f"{self.url}/{name}", send)
        except FileNotFoundError:
            raise UserError(f"{self.url}: cannot be written. Create the bucket first.") from None
