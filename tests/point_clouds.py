"""Point clouds as files of every kind, written without the program's own code."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from modalities.open3d_loader import import_open3d

KINDS = ("ply", "pcd", "npz", "npy", "bin")


def cloud(seed: int, count: int = 60) -> np.ndarray:
    """x, y, z and an intensity in [0, 1], float32 `[count, 4]`."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(0, 2, (count, 3)), rng.random((count, 1))], 1, dtype=np.float32)


def solid(number: int) -> np.ndarray:
    """float32 `[80, 4]`: a ball, a box or a stick, class `number % 3`, with an intensity."""
    rng = np.random.default_rng(number)
    points = rng.normal(size=(80, 3))
    if number % 3 == 0:
        points /= np.linalg.norm(points, axis=1, keepdims=True)
    elif number % 3 == 1:
        points /= np.abs(points).max(1, keepdims=True)
    else:
        points *= 0.1, 0.1, 2
    return np.concatenate([points + rng.uniform(-3, 3, 3), rng.random((80, 1))], 1, dtype=np.float32)


def ply(rows: np.ndarray, encoding: str = "binary_little_endian") -> bytes:
    names = ["x", "y", "z", "intensity"][: rows.shape[1]]
    properties = "".join(f"property float {name}\n" for name in names)
    header = f"ply\nformat {encoding} 1.0\nelement vertex {len(rows)}\n{properties}end_header\n"
    return header.encode() + (
        text(rows) if encoding == "ascii" else rows.astype(">f4" if "big" in encoding else "<f4").tobytes()
    )


def pcd(rows: np.ndarray, encoding: str = "binary") -> bytes:
    count, width = rows.shape
    header = "\n".join(
        [
            "# .PCD v0.7 - Point Cloud Data file format",
            "VERSION 0.7",
            f"FIELDS {' '.join(['x', 'y', 'z', 'intensity'][:width])}",
            f"SIZE {' '.join(['4'] * width)}",
            f"TYPE {' '.join(['F'] * width)}",
            f"COUNT {' '.join(['1'] * width)}",
            f"WIDTH {count}",
            "HEIGHT 1",
            "VIEWPOINT 0 0 0 1 0 0 0",
            f"POINTS {count}",
            f"DATA {encoding}\n",
        ]
    )
    return header.encode() + (text(rows) if encoding == "ascii" else rows.astype("<f4").tobytes())


def text(rows: np.ndarray) -> bytes:
    return "".join(" ".join(repr(float(value)) for value in row) + "\n" for row in rows).encode()


def npy(rows: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, rows)
    return file.getvalue()


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def written(rows: np.ndarray, kind: str) -> bytes:
    """A file of that kind, binary where there is a choice."""
    match kind:
        case "ply":
            return ply(rows)
        case "pcd":
            return pcd(rows)
        case "npz":
            return npz(points=rows)
        case "npy":
            return npy(rows)
    return rows.astype("<f4").tobytes()


def by_open3d(rows: np.ndarray, kind: str, encoding: str, colours: np.ndarray | None = None) -> bytes:
    """A `ply` or `pcd`, `ascii`, `binary` or `compressed`, as Open3D writes it."""
    o3d = import_open3d()
    held = o3d.t.geometry.PointCloud()
    held.point.positions = o3d.core.Tensor(np.ascontiguousarray(rows[:, :3]))
    if rows.shape[1] > 3:
        held.point.intensity = o3d.core.Tensor(np.ascontiguousarray(rows[:, 3:]))
    if colours is not None:
        held.point.colors = o3d.core.Tensor(colours)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"cloud.{kind}"
        done = o3d.t.io.write_point_cloud(
            str(path), held, write_ascii=encoding == "ascii", compressed=encoding == "compressed"
        )
        assert done
        return path.read_bytes()
