"""Reads the header of a `.ply` or a `.pcd`, and verifies it against the bytes that follow.

Open3D 0.20 trusts headers: a damaged one crashes it, and for a truncated file, it returns uninitialised memory.
Headers are therefore parsed strictly here, and only sizes that fit the file are passed on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modalities.numpy_file import MOST_BYTES

MOST_POINTS = 8_000_000
"""Upper limit on the points of a file: a few kilobytes can declare millions."""
MOST_COLUMNS = 256
LONGEST_HEADER = 65_536
"""Bytes."""

PLY_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float32": "f4", "float64": "f8",
}  # fmt: skip
PLY_ORDERS = {"ascii": "<", "binary_little_endian": "<", "binary_big_endian": ">"}
PCD_TYPES = {
    ("I", "1"): "i1", ("I", "2"): "i2", ("I", "4"): "i4", ("I", "8"): "i8", ("U", "1"): "u1", ("U", "2"): "u2",
    ("U", "4"): "u4", ("U", "8"): "u8", ("F", "4"): "f4", ("F", "8"): "f8",
}  # fmt: skip
PCD_BEGINS = re.compile(rb"(#[^\n]*\n|\s)*(VERSION|FIELDS|COLUMNS)\s")


@dataclass(frozen=True)
class Layout:
    """The layout of a file's points, all of which `body` contains.

    names, types: of the columns; each type is a NumPy type such as `<f4`. encoding: `ascii`, one line per point;
    `binary`, row by row; `compressed`, with LZF, column by column.
    """

    count: int
    names: tuple[str, ...]
    types: tuple[np.dtype, ...]
    encoding: str
    body: bytes

    @property
    def row(self) -> np.dtype:
        """The type of one point; its fields are named by their position: `0`, `1` and so on."""
        return np.dtype([(str(place), kind) for place, kind in enumerate(self.types)])


def ply_layout(data: bytes) -> Layout:
    """Parse a PLY and return its vertices. Raises ValueError if it is invalid or truncated."""
    header, body = _split(data, rb"(?:^|[\r\n])end_header[ \t]*(?:\r\n|\r|\n)", "PLY")
    lines = [line.split() for line in re.split(r"[\r\n]+", header)]
    encoding, order, elements = "", "", list[tuple[str, str, list[tuple[str, str]]]]()
    for words in lines[1:]:
        match words:
            case ["format", kind, "1.0"] if kind in PLY_ORDERS:
                encoding, order = "ascii" if kind == "ascii" else "binary", PLY_ORDERS[kind]
            case ["element", name, count]:
                elements.append((name, count, []))
            case ["property", "list", _, _, name] if elements:
                elements[-1][2].append((name, "list"))
            case ["property", kind, name] if elements and kind in PLY_TYPES:
                elements[-1][2].append((name, PLY_TYPES[kind]))
            case [] | ["comment" | "obj_info", *_]:
                pass
            case _:
                raise ValueError(f"the header of the PLY is damaged: {' '.join(words)[:60]!r}")
    if not encoding or not elements or elements[0][0] != "vertex":
        raise ValueError("the PLY has no format, or does not start with its vertices; export it as a point cloud")
    _, count, columns = elements[0]
    if any(kind == "list" for _, kind in columns):
        raise ValueError("the vertices of the PLY contain lists; export it as a point cloud")
    return _checked(_whole(count), columns, order, encoding, body)


def pcd_layout(data: bytes) -> Layout:
    """Parse a PCD and return its points. Raises ValueError if it is invalid or truncated."""
    header, body = _split(data, rb"(?:^|\n)DATA[ \t]+[a-z_]+[ \t]*\r?\n", "PCD")
    entries = dict[str, list[str]]()
    for line in header.split("\n"):
        word, *values = line.split() or ["#"]
        if not word.startswith("#"):
            entries["FIELDS" if word == "COLUMNS" else word] = values
    names, sizes, kinds = (entries.get(word, []) for word in ("FIELDS", "SIZE", "TYPE"))
    counts = [_whole(count) for count in entries.get("COUNT", ["1"] * len(names))]
    encoding = {"ascii": "ascii", "binary": "binary", "binary_compressed": "compressed"}.get("".join(entries["DATA"]))
    if encoding is None or not len(names) == len(sizes) == len(kinds) == len(counts) or sum(counts) > MOST_COLUMNS:
        raise ValueError("the header of the PCD is damaged: check DATA, FIELDS, SIZE, TYPE and COUNT")
    if encoding == "compressed" and set(counts) > {1}:
        raise ValueError("a compressed PCD with several values in a field; save it as `binary`")
    columns = list[tuple[str, str]]()
    for name, size, kind, count in zip(names, sizes, kinds, counts, strict=True):
        if (kind, size) not in PCD_TYPES:
            raise ValueError(f"the PCD has a field of type {kind} with {size} bytes, which does not exist")
        columns += [(name, PCD_TYPES[kind, size])] * count
    width, height = (_whole("".join(entries.get(word, ["1"]))) for word in ("WIDTH", "HEIGHT"))
    points = _whole("".join(entries.get("POINTS", [str(width * height)])))
    if points != width * height:
        raise ValueError(f"the header of the PCD is damaged: {points} points of {width} x {height}")
    return _checked(points, columns, "<", encoding, body)


def _split(data: bytes, end: bytes, kind: str) -> tuple[str, bytes]:
    """The header including its last line, and the bytes after it."""
    match = re.search(end, data[:LONGEST_HEADER])
    if match is None:
        raise ValueError(
            f"the {kind} is damaged: the end of its header is not within {min(len(data), LONGEST_HEADER)} bytes"
        )
    last = match.end() if kind == "PCD" else match.start()
    return data[:last].decode("latin-1"), data[match.end() :]


def _whole(number: str) -> int:
    """Parse a count. Raises ValueError if it is not one."""
    if not re.fullmatch(r"[0-9]{1,12}", number):
        raise ValueError(f"the header is damaged: {number[:40]!r} is not a count")
    return int(number)


def _checked(count: int, columns: Sequence[tuple[str, str]], order: str, encoding: str, body: bytes) -> Layout:
    """Return the layout after checking that it is a point cloud within the limits and that no bytes are missing."""
    if count == 0:
        raise ValueError("the point cloud is empty")
    names, types = tuple(name for name, _ in columns), tuple(np.dtype(order + kind) for _, kind in columns)
    if any(names.count(axis) != 1 or types[names.index(axis)].kind != "f" for axis in "xyz"):
        found = ", ".join(f"{name} ({kind})" for name, kind in zip(names[:12], types, strict=False))
        raise ValueError(f"a point cloud requires one column of floats for each of x, y and z; this one has {found}")
    width = sum(kind.itemsize for kind in types)
    if len(columns) > MOST_COLUMNS or count > MOST_POINTS or count * width > MOST_BYTES:
        raise ValueError(f"{count} points of {width} bytes; at most {MOST_POINTS} and {MOST_BYTES} bytes are accepted")
    if encoding == "compressed":
        packed, unpacked = (int.from_bytes(body[at : at + 4], "little") for at in (0, 4))
        if unpacked != count * width:
            raise ValueError(f"the PCD is damaged: {unpacked} bytes for {count} points of {width} bytes")
        needed = 8 + packed
    else:  # text has at least one digit and a space per number, except for the last
        needed = count * (width if encoding == "binary" else 2 * len(columns)) - (encoding == "ascii")
    if len(body) < needed:
        raise ValueError(f"the point cloud is truncated: it has {len(body)} of at least {needed} bytes; copy it again")
    return Layout(count, names, types, encoding, body[:needed] if encoding != "ascii" else body)
