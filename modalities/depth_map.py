"""A depth map and what follows from it: where its points lie, how its surfaces face, which way is down."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from modalities.geometry import Geometry

SURFACES = 4000
"""Normals, evenly of all, that gravity is estimated from."""

FIELD_OF_VIEW = math.radians(60)  # horizontal; assumed where meta.json has no intrinsics, near most depth cameras'


@dataclass(frozen=True)
class DepthMap:
    """metres float32 `[H, W]`, 0 where not valid bool `[H, W]`; intrinsics fx, fy, cx, cy in its pixels.

    Pixel centres are whole numbers: the point at metres z in column u lies at x = (u - cx) / fx * z.
    gravity: where things fall to, a unit vector (x right, y down, z away from the camera); None if nobody measured it.
    """

    metres: np.ndarray
    valid: np.ndarray
    intrinsics: tuple[float, float, float, float]
    gravity: tuple[float, float, float] | None = None


def transform(depth: DepthMap, geometry: Geometry, size: int) -> DepthMap:
    """Crop, flip and scale depth and intrinsics to `[size, size]`.

    A pixel's metres are the mean over its valid sources; it is valid if they are at least half of them.
    """
    weight = geometry.resize(depth.valid.astype(np.float32), size)
    total = geometry.resize(depth.metres, size)
    valid = weight > 0.499  # half, but for rounding
    metres = np.divide(total, weight, out=np.zeros_like(total), where=valid)
    gravity = depth.gravity
    if gravity is not None and geometry.flip:
        gravity = (-gravity[0], gravity[1], gravity[2])
    return DepthMap(metres, valid, geometry.intrinsics(depth.intrinsics, depth.metres.shape, size), gravity)


def intrinsics(meta: Mapping[str, Any], height: int, width: int) -> tuple[float, float, float, float]:
    """fx, fy, cx, cy in pixels of a map of that size; ValueError for intrinsics that are none."""
    given = meta.get("intrinsics")
    if given is None:
        focal = width / 2 / math.tan(FIELD_OF_VIEW / 2)
        return focal, focal, (width - 1) / 2, (height - 1) / 2
    try:
        fx, fy, cx, cy = (float(given[key]) for key in ("fx", "fy", "cx", "cy"))
        x, y = width / float(given.get("width", width)), height / float(given.get("height", height))
        good = all(map(math.isfinite, (fx, fy, cx, cy, x, y))) and min(fx, fy, x, y) > 0
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError):
        good = False
    if not good:
        raise ValueError(
            f"meta.json: intrinsics: {given!r}: expected numbers fx, fy, cx, cy in pixels, focal lengths positive"
        )
    return fx * x, fy * y, (cx + 0.5) * x - 0.5, (cy + 0.5) * y - 0.5


def gravity(meta: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """`meta["gravity"]` as a unit vector, None without it; ValueError for one that is none."""
    given = meta.get("gravity")
    if given is None:
        return None
    try:
        x, y, z = (float(part) for part in given)
        length = math.hypot(x, y, z)
    except (TypeError, ValueError):
        length = math.nan
    if not 0 < length < math.inf:
        raise ValueError(f"meta.json: gravity: {given!r}: expected three numbers, x right, y down, z away")
    return x / length, y / length, z / length


def normals(depth: DepthMap) -> np.ndarray:
    """Unit normals float32 `[H, W, 3]`, from each pixel's right and lower neighbour; 0 where one is not valid."""
    from modalities.open3d_loader import import_open3d

    o3d = import_open3d()
    fx, fy, cx, cy = depth.intrinsics
    matrix = o3d.core.Tensor(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]))
    metres = o3d.t.geometry.Image(o3d.core.Tensor(np.ascontiguousarray(depth.metres[..., None])))
    return metres.create_vertex_map(matrix, 0.0).create_normal_map(0.0).as_tensor().numpy()


def vertices(depth: DepthMap) -> np.ndarray:
    """Points in metres, float32 `[H, W, 3]` (x right, y down, z away from the camera); 0 where not valid."""
    fx, fy, cx, cy = depth.intrinsics
    height, width = depth.metres.shape
    x = (np.arange(width, dtype=np.float32) - np.float32(cx)) / np.float32(fx) * depth.metres
    y = (np.arange(height, dtype=np.float32)[:, None] - np.float32(cy)) / np.float32(fy) * depth.metres
    return np.stack([x, y, depth.metres], -1) * depth.valid[..., None]


def down(normal: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The direction of gravity, a unit vector `[3]`, as most surfaces suggest: floors face against it, walls across.

    normal: unit normals `[N, 3]`. start: a first guess, such as (0, 1, 0) for a camera that is held upright. Five
    rounds with the surfaces within 45 degrees of what is expected, five within 15 (Gupta, Arbelaez and Malik 2013).
    """
    gravity = start
    normal = normal[:: max(len(normal) // SURFACES, 1)]
    for degrees in (45,) * 5 + (15,) * 5:
        cosine = np.abs(normal @ gravity)
        floors, walls = (
            normal[cosine > math.cos(math.radians(degrees))],
            normal[cosine < math.sin(math.radians(degrees))],
        )
        scatter = walls.T @ walls - floors.T @ floors
        found = np.linalg.eigh(scatter.astype(np.float64))[1][:, 0].astype(np.float32)
        gravity = found if found @ gravity > 0 else -found
    return gravity


def hha(depth: DepthMap) -> tuple[np.ndarray, np.ndarray]:
    """Height above the lowest surface in metres, `[H, W]`, and angle to gravity in radians, 0 (ceiling) to pi (floor),
    after Gupta et al. 2014, arXiv 1407.5736; 0 and pi / 2 where not known."""
    normal = normals(depth)
    seen = np.linalg.norm(normal, axis=-1) > 0.5
    gravity = np.array(depth.gravity or (0, 1, 0), np.float32)
    if depth.gravity is None and seen.any():
        gravity = down(normal[seen], gravity)
    height = -(vertices(depth) @ gravity)
    lowest = np.percentile(height[depth.valid], 1) if depth.valid.any() else 0.0
    above = np.where(depth.valid, np.maximum(height - lowest, 0), 0).astype(np.float32)
    angle = np.where(seen, np.arccos(np.clip(normal @ gravity, -1, 1)), math.pi / 2)
    return above, angle.astype(np.float32)
