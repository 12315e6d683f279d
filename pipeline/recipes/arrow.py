"""Tables of the `datasets` library on disk, Arrow streams and Parquet files: their splits, columns and cells."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.errors import UserError
from pipeline.members import member_name
from pipeline.recipes.tree import files_under

SUFFIXES = {
    b"\x89PNG": "png", b"\xff\xd8": "jpg", b"fLaC": "flac", b"OggS": "ogg", b"ID3": "mp3", b"\xff\xfb": "mp3",
    b"\xff\xf3": "mp3", b"\xff\xf2": "mp3", b"\x93NUMPY": "npy", b"II*\0": "tiff", b"MM\0*": "tiff",
}  # fmt: skip
"""How a file begins -> its suffix; the name that stands beside the bytes may be any, or none."""

SPLITS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val", "test": "test"}
"""The library's names of splits -> those of the shards."""


@dataclass(frozen=True)
class Table:
    """A file of rows. groups: the rows of each part that is read at a time; an Arrow stream is mapped whole."""

    path: Path
    split: str
    groups: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row is: the `row`-th of a part of a table. number: it counts through all tables of a split.

    values: the row's, of the columns that were asked for.
    """

    table: Table
    group: int
    row: int
    number: int
    values: Mapping[str, Any]


def tables(source: Path) -> list[Table]:
    """The files of rows in a folder, in order. Raises UserError for a folder without any."""
    if (source / "dataset_dict.json").is_file():
        named = [str(split) for split in _json(source / "dataset_dict.json", "splits")]
        paths = [(split, path) for split in named for path in _saved(_inside(source, split))]
    elif (source / "state.json").is_file():
        paths = [(source.name, path) for path in _saved(source)]
    else:
        parquet = (path for path in files_under(source) if path.suffix == ".parquet")
        paths = [(_split_in(path.relative_to(source)), path) for path in parquet]
    found = [Table(path, split, _groups(path)) for split, path in paths]
    if not any(sum(table.groups) for table in found):
        raise UserError(
            f"{source}: neither what `save_to_disk` writes (with a state.json) nor Parquet files with rows."
        )
    return found


def places(found: Sequence[Table], wanted: Sequence[str]) -> Iterator[Place]:
    """Every row of the tables, with its values of some columns of numbers or names."""
    numbers: Counter[str] = Counter()
    for table in found:
        for group, rows in enumerate(table.groups):
            part = _part(str(table.path), group, tuple(wanted)).select(wanted)
            for row in range(rows):
                if row % 1024 == 0:  # not all at once: a part may be the whole file
                    several = part.slice(row, 1024).to_pylist() if wanted else [{}] * 1024
                yield Place(table, group, row, numbers[table.split], several[row % 1024])
                numbers[table.split] += 1


def columns(found: Sequence[Table]) -> dict[str, dict[str, Any]]:
    """Column -> the library's description of it, `{}` where it gives none; UserError if the files differ in columns."""
    first, *others = (_schema(table.path) for table in found)
    for table, schema in zip(found[1:], others, strict=True):
        if schema.names != first.names:
            raise UserError(f"{table.path}: other columns than {found[0].path}; give the folder of one of the two.")
    try:
        described = json.loads(first.metadata[b"huggingface"])["info"]["features"]
    except (ValueError, KeyError, TypeError):
        described = {}
    # A list of strings was `[{...}]` in older versions.
    described = {name: {"feature": f[0]} if isinstance(f, list) else f for name, f in described.items()}
    return {name: described.get(name, {}) for name in first.names}


def members(fields: Mapping[str, str], path: str, group: int, place: int) -> dict[str, bytes]:
    """The members of a row, the `place`-th of a part of a table: field -> column. A cell without a value gives none.

    Raises ValueError for a cell that cannot be one, and OSError for a table that has gone.
    """
    row = _part(path, group, tuple(fields.values())).slice(place, 1).to_pylist()[0]
    found = dict(_member(field, column, row[column]) for field, column in fields.items() if row[column] is not None)
    if not found:
        raise ValueError(f"nothing in {', '.join(fields.values())}")
    return found


def _member(field: str, column: str, value: Any) -> tuple[str, bytes]:
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return f"{field}.txt", "\n".join(" ".join(text.split()) for text in value).encode()
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise ValueError(f"{column}: no bytes of a file, nor text; `save_to_disk` puts files into the tables")
    suffix = next((kind for start, kind in SUFFIXES.items() if data.startswith(start)), "")
    if data.startswith(b"RIFF"):
        suffix = "webp" if data[8:12] == b"WEBP" else "wav"
    if not suffix:
        raise ValueError(f"{column}: bytes of an unknown kind of file; convert it to one that {field} may be")
    if suffix == "tiff":
        suffix, data = _without_tiff(column, data)
    return member_name(field, f"x.{suffix}"), data


def _without_tiff(column: str, data: bytes) -> tuple[str, bytes]:
    """The library makes TIFFs of 16-bit images that it was given as arrays; as PNG they lose nothing."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{column}: a TIFF that is not of 8 or 16 bit")
    return "png", cv2.imencode(".png", image)[1].tobytes()


def _pyarrow() -> Any:
    try:
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("Arrow and Parquet files are read by pyarrow: pip install 'wcord[pack]'") from error
    return pyarrow


def _schema(path: Path) -> Any:
    if path.suffix == ".parquet":
        return _pyarrow().parquet.read_schema(path)
    with _pyarrow().memory_map(str(path)) as file:
        return _pyarrow().ipc.open_stream(file).schema


def _groups(path: Path) -> tuple[int, ...]:
    arrow = _pyarrow()
    try:
        if path.suffix != ".parquet":
            return (_part(str(path), 0, ()).num_rows,)
        about = arrow.parquet.read_metadata(path)
    except (OSError, arrow.ArrowInvalid) as error:
        raise UserError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
    return tuple(about.row_group(group).num_rows for group in range(about.num_row_groups))


@lru_cache(maxsize=8)
def _part(path: str, group: int, wanted: tuple[str, ...]) -> Any:
    """Part of a table: of Parquet the wanted columns of a group, which are unpacked; of Arrow all, which is mapped."""
    arrow = _pyarrow()
    if path.endswith(".parquet"):
        return arrow.parquet.ParquetFile(path).read_row_group(group, columns=list(wanted))
    return arrow.ipc.open_stream(arrow.memory_map(path)).read_all()


def _saved(folder: Path) -> list[Path]:
    """The Arrow files of a split, in order."""
    return [_inside(folder, str(file["filename"])) for file in _json(folder / "state.json", "_data_files")]


def _inside(folder: Path, name: str) -> Path:
    if Path(name).name != name or name == "..":
        raise UserError(f"{folder}: `{name}` is no name of a file in this folder; save the data set again.")
    return folder / name


def _json(path: Path, key: str) -> Any:
    try:
        return json.loads(path.read_bytes())[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not what `save_to_disk` writes ({error!r}).") from None


def _split_in(path: Path) -> str:
    """`data/train-00000-of-00002.parquet` or `train/0000.parquet` -> `train`; the whole path without such a word."""
    words = re.split(r"[^a-z]+", path.with_suffix("").as_posix().lower())
    return next((word for word in reversed(words) if word in SPLITS), path.parent.name)
