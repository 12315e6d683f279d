"""Points out of the bytes of a `.ply`, `.pcd`, `.npz` or `.npy`, or of the raw floats of LiDAR sets (`.bin`).

NumPy reads what is a plain table once its header has been verified, which takes no temporary file. Open3D, whose import
takes seconds, is loaded for compressed PCDs only.
"""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from modalities.numpy_file import read_array
from modalities.open3d_loader import import_open3d
from modalities.point_header import MOST_BYTES, MOST_POINTS, PCD_BEGINS, Layout, pcd_layout, ply_layout

KEYS = ("points", "xyz")
"""Arrays of an `.npz` that are taken before all others."""
FARTHEST = 1e10
"""The largest coordinate. What is no cloud has larger ones when its bytes are read as floats."""
PACKED_COLOURS = ("rgb", "rgba")
"""Fields of a PCD that hold a colour in the bits of one number: red, green and blue from the third byte down."""
PADDING = "_"


def points_kind(data: bytes) -> str:
    """`ply`, `pcd`, `npz`, `npy`, or `bin`, which is everything else: raw floats have no mark."""
    if data.startswith((b"ply\n", b"ply\r")):
        return "ply"
    if data.startswith(b"\x93NUMPY"):
        return "npy"
    if data.startswith(b"PK\x03\x04"):
        return "npz"
    return "pcd" if PCD_BEGINS.match(data[:2000]) else "bin"


def read_points(data: bytes, columns: int, extra: int) -> np.ndarray:
    """Points of any of the five kinds.

    Args:
        data: The bytes of a file.
        columns: float32 numbers of a point in a `.bin`.
        extra: How many of the columns after x, y and z are wanted; in a `.ply` or `.pcd`, 8-bit ones and packed colours
            become 0 to 1.

    Returns:
        x, y, z and the other columns, float32 or float64 `[N, 3 + extra]`; rows with NaN or infinity are dropped.

    Raises:
        ValueError: The bytes are not of such a file, are cut short, or hold no point or too few columns.
    """
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
        table = table[np.isfinite(table.astype(np.float32)).all(1)]
    if not len(table):
        raise ValueError("a point cloud without a single point that is finite")
    if (farthest := float(np.abs(table).max(0)[:3].max())) > FARTHEST:
        raise ValueError(f"a coordinate of {farthest:.3g}: these bytes are damaged, or no point cloud")
    return table


def raw_floats(data: bytes, columns: int) -> np.ndarray:
    """float32 `[N, columns]` of a `.bin`; ValueError where the bytes are no whole number of rows."""
    if not data or len(data) % (4 * columns):
        raise ValueError(
            f"{len(data)} bytes are no point cloud: neither PLY, PCD, npz nor npy, nor float32 rows of {columns} "
            "columns; `columns` of the modality points says how many a .bin has"
        )
    return np.frombuffer(data, "<f4").reshape(-1, columns)


def _columns(array: np.ndarray, extra: int) -> np.ndarray:
    """The first columns of an array `[N, C]` of numbers."""
    if array.ndim != 2 or array.dtype.kind not in "fiu" or not len(array) or len(array) > MOST_POINTS:
        raise ValueError(
            f"an array of {array.dtype} {list(array.shape)}: points are numbers [N, C], N from 1 to {MOST_POINTS}"
        )
    if array.shape[1] < 3 + extra:
        raise ValueError(f"{array.shape[1]} columns: x, y, z and `extra: {extra}` need {3 + extra}")
    wide = array.dtype.itemsize > 4 or (array.dtype.kind != "f" and array.dtype.itemsize > 2)
    return array[:, : 3 + extra].astype(np.float64 if wide else np.float32)


def _archived(data: bytes) -> np.ndarray:
    """The array of an `.npz`: `points`, `xyz`, or else the first that is `[N, C]`; pickles are refused."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}
            preferred = [members[key] for key in KEYS if key in members]
            for name in preferred or members.values():
                if archive.getinfo(name).file_size > MOST_BYTES:
                    raise ValueError(f"{name} unpacks to more than {MOST_BYTES} bytes")
                array = read_array(archive.read(name))
                if preferred or array.ndim == 2:
                    return array
    except Exception as error:  # zipfile raises what it likes for a damaged archive
        raise ValueError(f"not a whole archive of NumPy arrays: {error}") from None
    raise ValueError(f"the archive has neither {' nor '.join(KEYS)}, nor an array [N, C]")


def _table(layout: Layout, extra: int) -> np.ndarray:
    """x, y, z and the next columns of a `.ply` or `.pcd`, in the order of the file."""
    own = _values(layout)
    found = [own[layout.names.index(axis)] for axis in "xyz"]
    for name, column in zip(layout.names, own, strict=True):
        if len(found) >= 3 + extra:
            break
        if name not in ("x", "y", "z", PADDING):
            found += list(_unpacked(name, column))
    if len(found) < 3 + extra:
        raise ValueError(f"{len(found) - 3} columns besides x, y and z ({', '.join(layout.names)}): `extra: {extra}`")
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
    """Each column `[N]` in the type that the header says."""
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
    """The columns of a compressed PCD, by Open3D. It is given a header of our own, which leaves nothing to believe."""
    if len({layout.types[layout.names.index(axis)] for axis in "xyz"}) > 1:
        raise ValueError("a compressed PCD with x, y and z of unlike types; save it as `binary`")
    # Names that mean nothing to it, so that each column stays as it is.
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
    with tempfile.TemporaryDirectory() as folder:  # it reads files only
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
