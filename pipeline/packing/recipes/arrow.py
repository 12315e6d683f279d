"""Reads tables of the `datasets` library (Arrow streams) and Parquet files: splits, columns and cells."""

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

from pipeline.common.errors import UserError
from pipeline.common.walk import files_under
from pipeline.data.member_formats import member_name

SUFFIXES = {
    b"\x89PNG": "png", b"\xff\xd8": "jpg", b"fLaC": "flac", b"OggS": "ogg", b"ID3": "mp3", b"\xff\xfb": "mp3",
    b"\xff\xf3": "mp3", b"\xff\xf2": "mp3", b"\x93NUMPY": "npy", b"II*\0": "tiff", b"MM\0*": "tiff",
}  # fmt: skip
"""First bytes of a file -> extension. The file name stored with the bytes may be wrong or missing."""

SPLITS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val", "test": "test"}
"""Split name in the library -> split name in the shards."""


@dataclass(frozen=True)
class Table:
    """A file that contains rows.

    Attributes:
        path: The file.
        split: Name of the split.
        groups: Number of rows of each row group; an Arrow stream is memory-mapped as a whole.
    """

    path: Path
    split: str
    groups: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """The position of a row.

    Attributes:
        table: The file.
        group: Index of the row group.
        row: Index within the row group.
        number: Index within the split, across files.
        values: Values of the requested columns.
    """

    table: Table
    group: int
    row: int
    number: int
    values: Mapping[str, Any]


def tables(source: Path, files: Sequence[Path] = ()) -> list[Table]:
    """Find the tables in a folder, in order.

    Args:
        source: The folder.
        files: Parquet files in it, if they are known.

    Raises:
        UserError: The folder has no tables.
    """
    if files:
        paths = [(_split_in(path.relative_to(source)), path) for path in files]
    elif (source / "dataset_dict.json").is_file():
        named = [str(split) for split in _json(source / "dataset_dict.json", "splits")]
        paths = [(split, path) for split in named for path in _saved(_inside(source, split))]
    elif (source / "state.json").is_file():
        paths = [(source.name, path) for path in _saved(source)]
    else:
        parquet = [path for path in files_under(source) if path.suffix == ".parquet"]
        _one_configuration(source, parquet)
        paths = [(_split_in(path.relative_to(source)), path) for path in parquet]
    found = [Table(path, split, _groups(path)) for split, path in paths]
    if not any(sum(table.groups) for table in found):
        raise UserError(
            f"{source}: contains neither the output of `save_to_disk` (with a state.json) nor a non-empty Parquet "
            "file. Check the folder."
        )
    return found


def places(found: Sequence[Table], wanted: Sequence[str]) -> Iterator[Place]:
    """Yield every row of the tables with the values of some columns."""
    numbers: Counter[str] = Counter()
    for table in found:
        for group, rows in enumerate(table.groups):
            part = _part(str(table.path), group, tuple(wanted)).select(wanted)
            for row in range(rows):
                if row % 1024 == 0:  # read in blocks, since a row group may span the whole file
                    several = part.slice(row, 1024).to_pylist() if wanted else [{}] * 1024
                yield Place(table, group, row, numbers[table.split], several[row % 1024])
                numbers[table.split] += 1


def columns(found: Sequence[Table]) -> dict[str, dict[str, Any]]:
    """Read the column descriptions.

    Returns:
        Column -> its description by the library; `{}` if there is none.

    Raises:
        UserError: The files have different columns.
    """
    first, *others = (_schema(table.path) for table in found)
    for table, schema in zip(found[1:], others, strict=True):
        if schema.names != first.names:
            raise UserError(
                f"{table.path}: its columns differ from those of {found[0].path}; use a folder with only one of these "
                "files."
            )
    try:
        described = json.loads(first.metadata[b"huggingface"])["info"]["features"]
    except (ValueError, KeyError, TypeError):
        described = {}
    # Older versions describe a list of strings as `[{...}]`.
    described = {name: {"feature": f[0]} if isinstance(f, list) else f for name, f in described.items()}
    return {name: described.get(name, {}) for name in first.names}


def members(fields: Mapping[str, str], path: str, group: int, place: int) -> dict[str, bytes]:
    """Read the members of a row. An empty cell yields no member.

    Args:
        fields: Field -> column.
        path: The file.
        group: Index of the row group.
        place: Index within the row group.

    Raises:
        ValueError: A cell cannot be converted to a member.
        OSError: The file is missing.
    """
    row = _part(path, group, tuple(fields.values())).slice(place, 1).to_pylist()[0]
    found = dict(_member(field, column, row[column]) for field, column in fields.items() if row[column] is not None)
    if not found:
        raise ValueError(f"all cells are empty: {', '.join(fields.values())}")
    return found


def _member(field: str, column: str, value: Any) -> tuple[str, bytes]:
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return f"{field}.txt", "\n".join(" ".join(text.split()) for text in value).encode()
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise ValueError(
            f"{column}: neither file content nor text; use `save_to_disk`, which embeds files in the tables"
        )
    suffix = next((kind for start, kind in SUFFIXES.items() if data.startswith(start)), "")
    if data.startswith(b"RIFF"):
        suffix = "webp" if data[8:12] == b"WEBP" else "wav"
    if not suffix:
        raise ValueError(
            f"{column}: unknown file format; convert the files to one that the field `{field}` supports, e.g. JPEG or "
            "PNG for photos and FLAC for audio"
        )
    if suffix == "tiff":
        suffix, data = _without_tiff(column, data)
    return member_name(field, f"x.{suffix}"), data


def _without_tiff(column: str, data: bytes) -> tuple[str, bytes]:
    """Convert TIFF to PNG losslessly, since the library encodes 16-bit arrays as TIFF."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{column}: the TIFF does not have 8 or 16 bits")
    return "png", cv2.imencode(".png", image)[1].tobytes()


def require_pyarrow() -> Any:
    """Import pyarrow.

    Raises:
        UserError: It is not installed.
    """
    try:
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("reading Arrow and Parquet files requires pyarrow: pip install 'wcord[pack]'") from error
    return pyarrow


def _schema(path: Path) -> Any:
    if path.suffix == ".parquet":
        return require_pyarrow().parquet.read_schema(path)
    with require_pyarrow().memory_map(str(path)) as file:
        return require_pyarrow().ipc.open_stream(file).schema


def _groups(path: Path) -> tuple[int, ...]:
    arrow = require_pyarrow()
    try:
        if path.suffix != ".parquet":
            return (_part(str(path), 0, ()).num_rows,)
        about = arrow.parquet.read_metadata(path)
    except (OSError, arrow.ArrowInvalid) as error:
        raise UserError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
    return tuple(about.row_group(group).num_rows for group in range(about.num_row_groups))


@lru_cache(maxsize=8)
def _part(path: str, group: int, wanted: tuple[str, ...]) -> Any:
    """A row group with the requested columns of Parquet, or the complete Arrow stream, which is memory-mapped."""
    arrow = require_pyarrow()
    if path.endswith(".parquet"):
        return arrow.parquet.ParquetFile(path).read_row_group(group, columns=list(wanted))
    return arrow.ipc.open_stream(arrow.memory_map(path)).read_all()


def _saved(folder: Path) -> list[Path]:
    """The Arrow files of a split, in order."""
    return [_inside(folder, str(file["filename"])) for file in _json(folder / "state.json", "_data_files")]


def _inside(folder: Path, name: str) -> Path:
    if Path(name).name != name or name == "..":
        raise UserError(f"{folder}: `{name}` is not a file name in this folder; save the dataset again.")
    return folder / name


def _json(path: Path, key: str) -> Any:
    try:
        return json.loads(path.read_bytes())[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not an output of `save_to_disk` ({error!r}).") from None


def _one_configuration(source: Path, parquet: Sequence[Path]) -> None:
    """Check that all files belong to one configuration of a dataset; on the Hub, each has its own folder.

    Raises:
        UserError: They belong to several. The message lists the configurations.
    """
    named = {configuration(path.parent.relative_to(source)) for path in parquet}
    if len(named) > 1:
        listed = sorted(str(folder) for folder in named)
        several = ", ".join(listed[:10]) + (f" and {len(listed) - 10} more" if len(listed) > 10 else "")
        other = next(folder for folder in listed if folder != ".")
        raise UserError(
            f"{source}: contains several datasets or configurations: {several}. Pack one of them, such as "
            f"{source / other}."
        )


def configuration(folder: Path) -> Path:
    """The configuration that the files in a folder belong to.

    It is the folder without subfolders for splits (`train`, `train-part1`), data (`data`) and columns (`year=2020`).
    """
    kept = [part for part in folder.parts if part != "data" and "=" not in part and not _is_split(part)]
    return Path(*kept)


def _is_split(name: str) -> bool:
    return re.split(r"[^a-z]+", name.lower())[0] in SPLITS


def _split_in(path: Path) -> str:
    """`data/train-00000-of-00002.parquet` or `train/0000.parquet` -> `train`; else the name of the folder."""
    words = re.split(r"[^a-z]+", path.with_suffix("").as_posix().lower())
    return next((word for word in reversed(words) if word in SPLITS), path.parent.name)
