"""Preprocess point clouds for the network. Requires numpy."""

import io
import json
import re
from pathlib import Path

import numpy as np

ABOUT = json.loads((Path(__file__).parent / "preprocessing.json").read_text())
SET = ABOUT["settings"]
WIDTH = 3 + SET["extra"]
PLY_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float32": "f4", "float64": "f8",
}  # fmt: skip


def read(data: bytes) -> dict[str, np.ndarray]:
    """Convert a PLY, PCD, npz, npy or `.bin` to `points`, float32 [count, C], evenly spaced, and their `mask`."""
    try:
        rows = rows_of(data)
    except Exception as error:  # a damaged file may raise any error
        raise ValueError(f"not a readable point cloud: {error}") from None
    rows = rows[np.isfinite(rows[:, :WIDTH]).all(1), :WIDTH]
    if not len(rows) or rows.shape[1] < WIDTH:
        raise ValueError(f"contains no points with {WIDTH} columns")
    rows = rows[np.arange(SET["count"]) * len(rows) // SET["count"]].astype(np.float64)
    if SET["radius"] is not None:
        rows[:, :3] /= SET["radius"]
    else:
        rows[:, :3] -= rows[:, :3].mean(0)
        rows[:, :3] /= np.linalg.norm(rows[:, :3], axis=1).max() or 1
    return {"points": rows.astype(np.float32), "mask": np.ones(len(rows), bool)}


def batch(samples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Combine results of `read` into one input of the network."""
    return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}


def rows_of(data: bytes) -> np.ndarray:
    """Read the columns of all points of a file."""
    if data.startswith(b"\x93NUMPY"):
        return np.load(io.BytesIO(data), allow_pickle=False)
    if data.startswith(b"PK\x03\x04"):
        return from_archive(np.load(io.BytesIO(data), allow_pickle=False))
    if data.startswith((b"ply\n", b"ply\r")):
        return from_ply(data)
    if re.match(rb"(#[^\n]*\n|\s)*(VERSION|FIELDS|COLUMNS)\s", data[:2000]):
        return from_pcd(data)
    return np.frombuffer(data, "<f4").reshape(-1, SET["columns"])


def from_archive(arrays: np.lib.npyio.NpzFile) -> np.ndarray:
    """Get the points of an `.npz`."""
    named = [arrays[key] for key in ("points", "xyz") if key in arrays.files]
    return named[0] if named else next(array for array in map(arrays.__getitem__, arrays.files) if array.ndim == 2)


def from_ply(data: bytes) -> np.ndarray:
    """Read the vertices of a PLY."""
    head, body = re.split(rb"end_header[ \t]*(?:\r\n|\r|\n)", data, maxsplit=1)
    text = head.decode("latin-1").replace("\r", "\n")
    vertex = re.split(r"\nelement\s+", text)[1]  # the first element
    order = ">" if "binary_big_endian" in text else "<"
    columns = [(name, order + PLY_TYPES[kind]) for kind, name in re.findall(r"\nproperty\s+(\w+)\s+(\w+)", vertex)]
    return table(columns, int(vertex.split()[1]), re.search(r"\nformat\s+ascii", text) is not None, body)


def from_pcd(data: bytes) -> np.ndarray:
    """Read the points of a PCD."""
    head, encoding, body = re.split(rb"(?<=\n)DATA\s+(\w+)[ \t]*\r?\n", data, maxsplit=1)
    if encoding == b"binary_compressed":
        raise ValueError("a compressed PCD; save it as `binary`")
    lines = [line.split() for line in head.decode("latin-1").splitlines()]
    entry = {line[0].replace("COLUMNS", "FIELDS"): line[1:] for line in lines if line and not line[0].startswith("#")}
    counts = entry.get("COUNT", ["1"] * len(entry["FIELDS"]))
    columns = [
        (name, f"<{kind.lower()}{size}")
        for name, size, kind, count in zip(entry["FIELDS"], entry["SIZE"], entry["TYPE"], counts, strict=True)
        for _ in range(int(count))
    ]
    return table(columns, int(entry["WIDTH"][0]) * int(entry["HEIGHT"][0]), encoding == b"ascii", body)


def table(columns: list[tuple[str, str]], count: int, ascii: bool, body: bytes) -> np.ndarray:
    """Read x, y, z and the following columns of the file. 8-bit columns and packed colours are scaled to [0, 1]."""
    if ascii:
        numbers = np.loadtxt(body.splitlines()[:count], comments=None, ndmin=2)
        own = [numbers[:, place].astype(kind) for place, (_, kind) in enumerate(columns)]
    else:
        rows = np.frombuffer(body, [(str(place), kind) for place, (_, kind) in enumerate(columns)], count)
        own = [np.ascontiguousarray(rows[str(place)]) for place in range(len(columns))]
    names = [name for name, _ in columns]
    found = [own[names.index(axis)] for axis in "xyz"]
    for name, column in zip(names, own, strict=True):
        if name in ("rgb", "rgba") and column.dtype.itemsize == 4:
            found += [(column.view(np.uint32) >> shift & 255) / 255 for shift in (16, 8, 0)]
        elif name not in ("x", "y", "z", "_"):
            found.append(column / np.float32(255) if column.dtype == np.uint8 else column)
    return np.stack(found, 1)
