"""Reads points from the bytes of a `.ply`, `.pcd`, `.npz` or `.npy`, or from raw floats as in LiDAR datasets (`.bin`).

Once a header has been verified, NumPy reads all plain tables, without temporary files. Open3D, which takes seconds to
import, is only used for compressed PCDs.
"""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from modalities.numpy_file import MOST_BYTES, open_member, read_array
from modalities.open3d_loader import import_open3d
from modalities.point_header import MOST_POINTS, PCD_BEGINS, Layout, pcd_layout, ply_layout

KEYS = ("points", "xyz")
"""Arrays of an `.npz` that take precedence over all others."""
FARTHEST = 1e10
"""The largest valid coordinate. Bytes that are not a point cloud give larger ones when read as floats."""
PACKED_COLOURS = ("rgb", "rgba")
"""Fields of a PCD that pack a colour into one number: red, green and blue from the third byte down."""
PADDING = "_"


def points_kind(data: bytes) -> str:
    """The kind of file: `ply`, `pcd`, `npz`, `npy`, or else `bin`, since raw floats have no signature."""
    if data.startswith((b"ply\n", b"ply\r")):
        return "ply"
    if data.startswith(b"\x93NUMPY"):
        return "npy"
    if data.startswith(b"PK\x03\x04"):
        return "npz"
    return "pcd" if PCD_BEGINS.match(data[:2000]) else "bin"


def read_points(data: bytes, columns: int, extra: int) -> np.ndarray:
    """Read points from any of the five kinds of files.

    Args:
        data: The bytes of a file.
        columns: Number of float32 values per point in a `.bin`.
        extra: Number of columns after x, y and z to read. In a `.ply` or `.pcd`, 8-bit columns and packed colours are
            scaled to [0, 1].

    Returns:
        x, y, z and the extra columns, float32 or float64 `[N, 3 + extra]`. Rows with NaN or infinity are dropped.

    Raises:
        ValueError: The bytes are not such a file, are truncated, or contain no points or too few columns.
    """
    if len(data) > MOST_BYTES:
        raise ValueError(f"a point cloud of {len(data)} bytes; at most {MOST_BYTES} are accepted: save fewer points")
    match points_kind(data):
        case "ply":
            table = _table(ply_layout(data), extra)
        case "pcd":
            table = _table(pcd_layout(data), extra)
        case "npy":
            table = _columns(read_array(data), extra)
        case "npz":
            table = _columns(_archived(data), extra)
        case _:
            table = _columns(raw_floats(data, columns), extra)
    with np.errstate(over="ignore"):
        finite = np.isfinite(table.astype(np.float32, copy=False)).all(1)
    if not finite.all():
        table = table[finite]
    if not len(table):
        raise ValueError("a point cloud without any finite points")
    if (farthest := float(max(table[:, :3].max(), -table[:, :3].min()))) > FARTHEST:
        raise ValueError(f"a coordinate of {farthest:.3g}: the file is damaged, or is not a point cloud")
    return table


def raw_floats(data: bytes, columns: int) -> np.ndarray:
    """Read a `.bin` as float32 `[N, columns]`. Raises ValueError if the bytes are not a whole number of rows."""
    if not data or len(data) % (4 * columns):
        raise ValueError(
            f"{len(data)} bytes are not a point cloud: neither PLY, PCD, npz or npy, nor float32 rows of {columns} "
            "columns; for a .bin, set `columns` of the modality points to its number of columns"
        )
    return np.frombuffer(data, "<f4").reshape(-1, columns)


def _columns(array: np.ndarray, extra: int) -> np.ndarray:
    """The first columns of an array `[N, C]` of numbers."""
    if array.ndim != 2 or array.dtype.kind not in "fiu" or not len(array) or len(array) > MOST_POINTS:
        raise ValueError(
            f"an array of {array.dtype} {list(array.shape)}: points must be numbers [N, C], with N from 1 to "
            f"{MOST_POINTS}"
        )
    if array.shape[1] < 3 + extra:
        raise ValueError(
            f"the array has {array.shape[1]} columns, but x, y, z and `extra: {extra}` of the modality require "
            f"{3 + extra}"
        )
    wide = array.dtype.itemsize > 4 or (array.dtype.kind != "f" and array.dtype.itemsize > 2)
    return array[:, : 3 + extra].astype(np.float64 if wide else np.float32, copy=False)


def _archived(data: bytes) -> np.ndarray:
    """The array of an `.npz`: `points`, `xyz`, or else the first one of shape `[N, C]`. Pickles are rejected."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}
            preferred = [members[key] for key in KEYS if key in members]
            for name in preferred or members.values():
                with open_member(archive, name) as file:
                    array = read_array(file)
                if preferred or array.ndim == 2:
                    return array
    except Exception as error:  # for a damaged archive, zipfile may raise any error
        raise ValueError(f"not a complete archive of NumPy arrays: {error}") from None
    raise ValueError(f"the archive has neither {' nor '.join(KEYS)}, nor an array [N, C]")


def _table(layout: Layout, extra: int) -> np.ndarray:
    """x, y, z and the following columns of a `.ply` or `.pcd`, in the order of the file."""
    own = _values(layout)
    found = [own[layout.names.index(axis)] for axis in "xyz"]
    for name, column in zip(layout.names, own, strict=True):
        if len(found) >= 3 + extra:
            break
        if name not in ("x", "y", "z", PADDING):
            found += list(_unpacked(name, column))
    if len(found) < 3 + extra:
        raise ValueError(
            f"the modality has `extra: {extra}`, but the file has only {len(found) - 3} columns besides x, y and z "
            f"({', '.join(layout.names)})"
        )
    wide = any(column.dtype.itemsize > 4 for column in found[:3])
    with np.errstate(over="ignore"):
        return np.stack(found[: 3 + extra], 1, dtype=np.float64 if wide else np.float32, casting="unsafe")


def _unpacked(name: str, column: np.ndarray) -> Iterator[np.ndarray]:
    if name in PACKED_COLOURS and column.dtype.itemsize == 4:
        bits = column.view(np.uint32)
        for shift in (16, 8, 0):
            yield (bits >> shift & 255).astype(np.float32) / 255
    else:
        yield column.astype(np.float32) / 255 if column.dtype == np.uint8 else column


def _values(layout: Layout) -> list[np.ndarray]:
    """Each column `[N]`, in the type that the header declares."""
    if layout.encoding == "compressed":
        return _decompressed(layout)
    if layout.encoding == "binary":
        rows = np.frombuffer(layout.body, layout.row, layout.count)
        return [np.ascontiguousarray(rows[name]) for name in layout.row.names or ()]
    lines = [line for line in layout.body.splitlines() if line.strip()][: layout.count]
    try:
        numbers = np.loadtxt(lines, comments=None, ndmin=2) if lines else np.empty((0, 0))
    except ValueError as error:
        raise ValueError(f"the points are damaged: {error}") from None
    if numbers.shape != (layout.count, len(layout.names)):
        raise ValueError(f"{list(numbers.shape)} numbers instead of {[layout.count, len(layout.names)]}; copy it again")
    with np.errstate(all="ignore"):
        return [numbers[:, place].astype(kind) for place, kind in enumerate(layout.types)]


def _decompressed(layout: Layout) -> list[np.ndarray]:
    """The columns of a compressed PCD, read by Open3D. It receives our own header instead of the untrusted one."""
    if len({layout.types[layout.names.index(axis)] for axis in "xyz"}) > 1:
        raise ValueError("a compressed PCD in which x, y and z have different types; save it as `binary`")
    # These names have no meaning for Open3D, so each column stays unchanged.
    names = [name if name in ("x", "y", "z") else f"c{place}" for place, name in enumerate(layout.names)]
    lines = {
        "VERSION": ["0.7"],
        "FIELDS": names,
        "SIZE": [str(kind.itemsize) for kind in layout.types],
        "TYPE": [kind.kind.upper() for kind in layout.types],
        "COUNT": ["1"] * len(names),
        "WIDTH": [str(layout.count)],
        "HEIGHT": ["1"],
        "VIEWPOINT": list("0001000"),
        "POINTS": [str(layout.count)],
        "DATA": ["binary_compressed"],
    }
    header = "".join(f"{word} {' '.join(values)}\n" for word, values in lines.items())
    open3d = import_open3d()
    with tempfile.TemporaryDirectory() as folder:  # Open3D can only read files
        path = Path(folder) / "points.pcd"
        path.write_bytes(header.encode() + layout.body)
        with open3d.utility.VerbosityContextManager(open3d.utility.VerbosityLevel.Error):
            try:
                cloud = open3d.t.io.read_point_cloud(str(path)).point
                positions = cloud["positions"].numpy()
                found = [positions[:, "xyz".index(n)] if n in "xyz" else cloud[n].numpy()[:, 0] for n in names]
            except (RuntimeError, KeyError):
                raise ValueError("the compressed PCD is damaged; copy it again") from None
    if any(len(column) != layout.count for column in found):
        raise ValueError("the compressed PCD is damaged; copy it again")
    return [np.ascontiguousarray(column) for column in found]
