"""A depth map and what follows from it: where its points lie, how its surfaces face, which way is down."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from modalities.geometry import Geometry

SURFACES = 4000
"""Pixels, evenly of all, that gravity and the lowest surface are estimated from."""

ROWS = 96
"""Normals are found so many rows at a time, whose numbers stay in a core's cache."""

SQUARABLE = np.float32(1e-6), np.float32(1e6)
"""Metres whose inverse has a square in float32, no reading being 0."""

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
    metres = np.divide(total, np.maximum(weight, np.float32(0.499), out=weight), out=total)
    metres *= valid
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
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError):
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
    except (TypeError, ValueError, OverflowError):
        length = math.nan
    if not 0 < length < math.inf:
        raise ValueError(f"meta.json: gravity: {given!r}: expected three numbers, x right, y down, z away")
    return x / length, y / length, z / length


def normals(depth: DepthMap, out: np.ndarray | None = None) -> np.ndarray:
    """Unit normals float32 `[3, H, W]` (x right, y down, z away from the camera, which they face), from each pixel's
    right and lower neighbour; 0 where one of the three is not valid. out: written and returned, where it is given.

    The cross product of the two differences, over the product of the three depths: with w = 1 / z, a = w - w_right and
    b = w - w_lower it is (fx a, fy b, (cx - u) a + (cy - v) b - w) at column u and row v.
    """
    height, width = depth.metres.shape
    found = np.empty((3, height, width), np.float32) if out is None else out
    known = np.zeros((height, width), bool)
    np.logical_and(depth.valid[:-1, :-1], depth.valid[:-1, 1:], out=known[:-1, :-1])
    known[:-1] &= depth.valid[1:]
    for top in range(0, height, ROWS):
        _normals(depth, top, known[top : top + ROWS], found[:, top : top + ROWS])
    return found


def _normals(depth: DepthMap, top: int, known: np.ndarray, found: np.ndarray) -> None:
    """Those of the rows from `top` on, written into `found [3, rows, W]`; in place: the time goes into memory."""
    fx, fy, cx, cy = (np.float32(number) for number in depth.intrinsics)
    rows, width = known.shape
    count = known.size
    inverse = np.ones((rows + 1, width), np.float32)  # with the row below, of which the last has none
    metres = depth.metres[top : top + rows + 1]
    np.clip(metres, *SQUARABLE, out=inverse[: len(metres)])
    np.divide(1, inverse, out=inverse)
    here, everything = inverse[:rows], inverse.ravel()
    a, b, c = found
    # As one row: what is right of the last column is masked, too.
    np.subtract(everything[:count], everything[1 : count + 1], out=a.reshape(-1))
    np.subtract(everything[:count], everything[width:], out=b.reshape(-1))
    np.multiply(a, cx - np.arange(width, dtype=np.float32), out=c)
    c -= here
    np.multiply(b, cy - np.arange(top, top + rows, dtype=np.float32)[:, None], out=here)
    c += here
    a *= fx
    b *= fy
    np.einsum("irw,irw->rw", found, found, out=here)
    np.sqrt(here, out=here)
    np.divide(known, here, out=here)
    found *= here


def vertices(depth: DepthMap) -> np.ndarray:
    """Points in metres, float32 `[3, H, W]` (x right, y down, z away from the camera); 0 where not valid."""
    x, y = rays(depth)
    return np.stack([x * depth.metres, y * depth.metres, depth.metres])


def rays(depth: DepthMap) -> tuple[np.ndarray, np.ndarray]:
    """x `[W]` and y `[H, 1]`, float32: the pixel's ray is (x, y, 1)."""
    fx, fy, cx, cy = (np.float32(number) for number in depth.intrinsics)
    height, width = depth.metres.shape
    x = (np.arange(width, dtype=np.float32) - cx) / fx
    return x, (np.arange(height, dtype=np.float32)[:, None] - cy) / fy


def down(normal: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The direction of gravity, a unit vector `[3]`, as most surfaces suggest: floors face against it, walls across.

    normal: unit normals `[N, 3]`, a few thousand of them. start: a first guess, such as (0, 1, 0) for a camera that is
    held upright. Five rounds with the surfaces within 45 degrees of what is expected, five within 15 (Gupta, Arbelaez
    and Malik 2013).
    """
    gravity = start
    for degrees in (45,) * 5 + (15,) * 5:
        cosine = np.abs(normal @ gravity)
        floors, walls = cosine > math.cos(math.radians(degrees)), cosine < math.sin(math.radians(degrees))
        scatter = (normal * (walls.astype(np.float32) - floors)[:, None]).T @ normal
        found = np.linalg.eigh(scatter.astype(np.float64))[1][:, 0].astype(np.float32)
        gravity = found if found @ gravity > 0 else -found
    return gravity


def hha(depth: DepthMap) -> tuple[np.ndarray, np.ndarray]:
    """Height above the lowest surface in metres, `[H, W]`, and angle to gravity in radians, 0 (ceiling) to pi (floor),
    after Gupta et al. 2014, arXiv 1407.5736; 0 and pi / 2 where not known."""
    normal = normals(depth)
    few = slice(None, None, max(depth.metres.size // SURFACES, 1))
    gravity = np.array(depth.gravity or (0, 1, 0), np.float32)
    faces = normal.reshape(3, -1)[:, few].T
    faces = faces[faces.any(1)]
    if depth.gravity is None and len(faces):
        gravity = down(faces, gravity)
    across, along = rays(depth)
    height = -depth.metres * (gravity[0] * across + (gravity[1] * along + gravity[2]))
    some = height.ravel()[few][depth.valid.ravel()[few]]
    height -= np.percentile(some, 1) if len(some) else 0
    height = np.maximum(height, 0, out=height) * depth.valid
    cosine = sum(part * direction for part, direction in zip(normal, gravity, strict=True))
    return height, np.arccos(np.clip(cosine, -1, 1))
