"""Reads the manifest of a dataset, checks its shard files, and writes shards."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError
from webdataset.writer import TarWriter

from pipeline.common.errors import UserError
from pipeline.common.files import part_path
from pipeline.data.dataset import MANIFEST, Dataset, Shard
from pipeline.data.foreign import PACKING, index_folder, index_once, is_foreign
from pipeline.data.missing import not_found
from pipeline.data.remote import exists, is_remote, mirror, origin, refresh
from pipeline.data.tar import split_name

Load = Callable[[str | Path, str, bool], Dataset]
"""Loads a dataset, as `load_dataset` does; the processes of a training share one that does it once."""


def load_dataset(folder: str | Path, label: str = "label", tolerant: bool = False) -> Dataset:
    """Load a dataset: read its `dataset.json`, or index foreign shards on first use.

    Args:
        folder: A packed or indexed dataset, or a pattern, glob or folder of WebDataset shards.
        label: The label whose values become classes when foreign shards are indexed, as in `data.label`.
        tolerant: Index a damaged foreign shard as far as it can be read. Otherwise, it is an error.

    Raises:
        UserError: There is no dataset, or its `dataset.json` is invalid.
    """
    if is_foreign(folder):
        return index_once(folder, index_folder(folder), label, tolerant).named({})
    path = local(folder) / MANIFEST
    try:
        if is_remote(folder):
            try:
                refresh(path.parent, MANIFEST)
            except FileNotFoundError:
                if exists(
                    f"{str(folder).rstrip('/')}/{PACKING}/plan.json"
                ):  # packing was interrupted, so its shards are incomplete
                    raise
                return index_once(folder, path.parent, label, tolerant).named({})
        return _checked(folder, Dataset.model_validate_json(path.read_bytes())).named({})
    except FileNotFoundError:
        raise not_found(folder, path) from None
    except PermissionError as error:
        raise UserError(
            f"{folder}/{MANIFEST}: permission denied ({error}). Check file permissions and credentials."
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{path}: {where}: {first['msg']}. Pack the data again with this version.") from None


def _checked(folder: str | Path, dataset: Dataset) -> Dataset:
    """Raise UserError if a remote index refers to local files."""
    shards = (shard for shards in dataset.splits.values() for shard in shards)
    if is_remote(folder) and (own := next((s.url for s in shards if s.url and not is_remote(s.url)), None)):
        raise UserError(
            f"{folder}/{MANIFEST}: this remote index refers to a local file, {own}. Index the shards by their URLs."
        )
    return dataset


def local(folder: str | Path) -> Path:
    """Local folder of a dataset: the folder itself, the mirror of a URL, or the index of foreign shards."""
    if is_foreign(folder):
        return index_folder(folder)
    return mirror(str(folder)) if is_remote(folder) else Path(folder)


def verify_files(folder: str | Path, shards: Iterable[Shard], command: str = "wcord pack") -> None:
    """Check that shards exist and have the recorded size, without reading them.

    For foreign shards without a hash, also check the modification time.

    Args:
        folder: Local folder of the dataset.
        shards: Shards to check. Remote ones are skipped.
        command: Command that rebuilds a shard, for the message.

    Raises:
        UserError: A shard is missing or has changed. The message states the first one and the command that restores it.
    """
    for shard in shards:
        path = shard.path(Path(folder))
        if origin(path.parent):
            continue
        rebuild, count = f"run the same `{command}` again to rebuild it", "run the same `wcord index` again to count it"
        if not path.is_file():
            raise UserError(f"{path}: shard is missing. Restore it, or {count if shard.url else rebuild}.")
        about = path.stat()
        if (found := about.st_size) != shard.bytes:
            cure = f"Restore it, or {count}." if shard.url else f"Delete it and {rebuild}."
            raise UserError(
                f"{path}: shard has {found} bytes instead of {shard.bytes} as in {MANIFEST}: truncated or changed. "
                f"{cure}"
            )
        if shard.url and not shard.sha256 and str(about.st_mtime_ns) != shard.state:
            raise UserError(f"{path}: the shard has changed since it was indexed. Restore it, or {count}.")


def write_shard(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> Shard:
    """Write samples as one tar, atomically: the path holds either a complete tar or none.

    Args:
        path: Path of the tar.
        samples: `(key, {member: bytes})`. Members are written in sorted order with fixed metadata, so equal content
            gives equal bytes.

    Returns:
        The entry of the shard in `dataset.json`.

    Raises:
        ValueError: A name would not be read back as it was written, or is too long for a plain tar.
    """
    part, count = part_path(path), 0
    try:
        with part.open("wb") as file:
            hashed = _HashedFile(file)
            with _tar_writer(hashed) as writer:
                for key, members in samples:
                    count += 1
                    for member in members:
                        name = f"{key}.{member}"
                        if split_name(name) != (key, member) or member.startswith(
                            "_"
                        ):  # TarWriter skips names with `_`
                            raise ValueError(f"{name}: would not be read back as member {member} of sample {key}")
                    _write_sample(writer, key, members)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        return Shard(file=path.name, samples=count, bytes=hashed.size, sha256=hashed.digest.hexdigest())
    finally:
        part.unlink(missing_ok=True)


def _write_sample(writer: TarWriter, key: str, members: Mapping[str, bytes]) -> None:
    try:
        writer.write({"__key__": key, **members})
    except ValueError as error:
        raise ValueError(f"sample {key}: {error}") from None
    writer.tarstream.members.clear()  # it would keep every header


def _tar_writer(file: _HashedFile) -> TarWriter:
    """WebDataset's writer, changed to write identical tars on every machine and at any time."""
    writer = TarWriter(file, user="", group="", mode=0o644, mtime=0, encoder=False)
    # TarWriter ignores its argument `format`; tarfile defaults to pax headers and to the machine's encoding.
    writer.tarstream.format, writer.tarstream.encoding = tarfile.USTAR_FORMAT, "utf-8"
    return writer


class _HashedFile:
    """A file that is written sequentially, and that tracks the size and hash of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size, self.digest = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self.file.write(data)
