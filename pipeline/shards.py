"""A packed data set on disk: WebDataset tars beside a `dataset.json` that says what is in them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import UserError
from pipeline.remote import is_remote, mirror, origin, refresh
from pipeline.tar import write_members

MANIFEST = "dataset.json"


class Shard(BaseModel):
    """One tar: its file name beside `dataset.json`, how many samples, its size in bytes, its sha256."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    file: Annotated[str, Field(pattern=r"^\w[\w.-]*\.tar$")]  # a plain name: it must not lead out of the folder
    samples: int
    bytes: int
    sha256: str


class Dataset(BaseModel):
    """The content of `dataset.json`.

    fields: member name -> number of samples that have it, e.g. `{"rgb.jpg": 900, "depth.png": 900}`.
    splits: split name -> its shards. classes: label name -> class names in order; `label` is the one in `label.txt`,
    others stand in `meta.json` under `labels`. masks: label name -> the pixel value of each of its classes; such a
    label is no number but the member `NAME.png`, and pixels of any other value belong to no class.
    units: member name -> unit in words.
    """

    model_config = ConfigDict(extra="forbid")
    version: int = 1
    name: str
    recipe: str
    fields: dict[str, int]
    splits: dict[str, list[Shard]]
    classes: dict[str, list[str]]
    masks: dict[str, list[Annotated[int, Field(ge=0, le=65535)]]] = {}
    units: dict[str, str]
    split_rule: str
    licence: str = "not stated"
    refused: int = 0

    @model_validator(mode="after")
    def _masks_have_classes(self) -> Dataset:
        for label, values in self.masks.items():
            names = self.classes.get(label, [])
            if not len(names) == len(values) == len(set(values)) > 0:
                raise ValueError(f"the mask `{label}` has {len(names)} classes and {len(set(values))} pixel values")
        return self

    def samples(self, split: str) -> int:
        """Samples of a split; 0 for one that there is not."""
        return sum(shard.samples for shard in self.splits.get(split, []))

    def counts(self) -> dict[str, int]:
        """Label -> number of its classes, of those labels that are no masks."""
        return {label: len(names) for label, names in self.classes.items() if label not in self.masks}

    def digest(self) -> str:
        """A short hash of what is in its shards, of all splits."""
        hashes = [shard.sha256 for shards in self.splits.values() for shard in shards]
        return hashlib.sha256(" ".join(sorted(hashes)).encode()).hexdigest()[:16]


def load_dataset(folder: str | Path) -> Dataset:
    """Read `folder/dataset.json`.

    Raises UserError if there is none (the packing was not finished), or if it is not of this format.
    """
    path = local(folder) / MANIFEST
    try:
        if is_remote(folder):
            refresh(path.parent, MANIFEST)
        return Dataset.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"{path}: not found. Either {folder} is not a packed data set or its packing was not finished; "
            "run `wcord pack` (again: it goes on where it stopped)."
        ) from None
    except PermissionError as error:
        raise UserError(
            f"{folder}/{MANIFEST}: may not be read ({error}); check its rights and the credentials."
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{path}: {where}: {first['msg']}. Pack the data again with this version.") from None


def local(folder: str | Path) -> Path:
    """Where a data set's files are, or will be once they are fetched: the folder itself, or the mirror of a URL."""
    return mirror(str(folder)) if is_remote(folder) else Path(folder)


def verify_files(folder: str | Path, shards: Iterable[Shard], command: str = "wcord pack") -> None:
    """Check, without reading them, that shards exist and have their recorded size; UserError names the first fault, and
    the command that makes them again."""
    for shard in [] if origin(Path(folder)) else shards:
        path = Path(folder) / shard.file
        if not path.is_file():
            raise UserError(f"{path}: shard is missing. Restore it, or run the same `{command}` again to rebuild it.")
        if (found := path.stat().st_size) != shard.bytes:
            raise UserError(
                f"{path}: shard has {found} bytes, its manifest says {shard.bytes}: cut short or changed. "
                f"Delete it and run the same `{command}` again to rebuild it."
            )


def write_shard(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> Shard:
    """Write `(key, {member: bytes})` samples as one tar, atomically: under its name there is a whole tar or none.

    Members are written in sorted order with fixed metadata, so equal content gives equal bytes.
    """
    part, digest, count, size = _part(path), hashlib.sha256(), 0, 0

    def named() -> Iterator[tuple[str, bytes]]:
        nonlocal count
        for key, members in samples:
            count += 1
            yield from ((f"{key}.{member}", members[member]) for member in sorted(members))

    try:
        with part.open("wb") as file:
            for piece in write_members(named()):
                digest.update(piece)
                size += file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        return Shard(file=path.name, samples=count, bytes=size, sha256=digest.hexdigest())
    finally:
        part.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a small file so that under its name there is either the old or the whole new content."""
    part = _part(path)
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def remove_stale_parts(folder: Path) -> None:
    """Remove what killed writers left: parts of processes that are gone, and, from other machines, parts a day old."""
    for part in folder.glob("*.part-*"):
        owner = re.fullmatch(r".+\.part-(.+)-(\d+)", part.name)
        with contextlib.suppress(FileNotFoundError):  # another writer may be cleaning too
            gone = owner and owner[1] == _host() and not _alive(int(owner[2]))
            if owner and (gone or time.time() - part.stat().st_mtime > 86_400):
                part.unlink()


def _part(path: Path) -> Path:
    """Where a file is written until it is whole: a name of this machine's and this process's own."""
    return path.with_name(f"{path.name}.part-{_host()}-{os.getpid()}")


def _host() -> str:
    return platform.node() or "localhost"


def _alive(pid: int) -> bool:
    if os.name != "posix":  # there, signal 0 is not a question
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sha256(path: Path) -> str:
    """The hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
