"""Geometry of a depth map: 3D points, surface normals, and the direction of gravity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from modalities.geometry import Geometry

SURFACES = 4000
"""Number of evenly spaced pixels from which gravity and the lowest surface are estimated."""

ROWS = 96
"""Number of rows for which normals are computed at a time, so the working set stays in the cache of a core."""

SQUARABLE = np.float32(1e-6), np.float32(1e6)
"""Range of depth in metres for which the square of 1 / depth fits in float32. Missing values (0) are clipped too."""

HALF, ANY = np.float32(0.499), np.float32(1e-5)
"""Minimum fraction of valid source pixels for a pixel to be valid, in dense and in sparse maps."""

FIELD_OF_VIEW = math.radians(60)  # horizontal, used if meta.json has no intrinsics; typical of depth cameras


@dataclass(frozen=True)
class DepthMap:
    """A depth map with its camera. Pixel centres are integers: column u at depth z lies at x = (u - cx) / fx * z.

    Args:
        metres: Depth, float32 `[H, W]`; 0 where not valid.
        valid: bool `[H, W]`, True where the sensor measured a depth.
        intrinsics: fx, fy, cx, cy in pixels of this map.
        gravity: Unit vector of the direction in which objects fall (x right, y down, z away from the camera); None if
            it was not measured.
    """

    metres: np.ndarray
    valid: np.ndarray
    intrinsics: tuple[float, float, float, float]
    gravity: tuple[float, float, float] | None = None


def transform(depth: DepthMap, geometry: Geometry, size: int) -> DepthMap:
    """Crop, flip and scale the depth map and its intrinsics to `[size, size]`.

    The depth of a pixel is the mean over its valid source pixels. In a dense map, a pixel is valid if at least half of
    its source pixels are, which keeps the borders of holes in place. In a sparse map, such as projected LiDAR, where
    half of them never are, one valid source pixel is enough. A map counts as sparse if most source pixels around its
    valid ones are holes (see `least_weight`).
    """
    weight = geometry.resize(depth.valid.astype(np.float32), size)
    total = geometry.resize(depth.metres, size)
    least = least_weight(weight)
    valid = weight > least
    metres = np.divide(total, np.maximum(weight, least, out=weight), out=total)
    metres *= valid
    gravity = depth.gravity
    if gravity is not None and geometry.flip:
        gravity = (-gravity[0], gravity[1], gravity[2])
    return DepthMap(metres, valid, geometry.intrinsics(depth.intrinsics, depth.metres.shape, size), gravity)


def least_weight(weight: np.ndarray) -> np.float32:
    """The weight that a pixel must exceed to be valid.

    Args:
        weight: Fraction of valid source pixels for each pixel, float32 `[size, size]`.

    Returns:
        0.5 (with a margin for rounding errors) for a dense map, in which the average valid source pixel belongs to a
        pixel that is at least half valid. Nearly 0 for a sparse map.
    """
    readings = float(weight.sum())
    return HALF if float(np.vdot(weight, weight)) >= 0.5 * readings else ANY


def intrinsics(meta: Mapping[str, Any], height: int, width: int) -> tuple[float, float, float, float]:
    """Read the camera intrinsics for a map of the given size.

    Args:
        meta: The contents of `meta.json`.
        height: Height of the map in pixels.
        width: Width of the map in pixels.

    Returns:
        fx, fy, cx, cy in pixels of the map. Without intrinsics in `meta`, a horizontal field of view of 60 degrees is
        assumed.

    Raises:
        ValueError: The intrinsics in `meta` are incomplete or not positive.
    """
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
    """Read `meta["gravity"]` as a unit vector; None if it is missing.

    Raises:
        ValueError: The value is not three finite numbers, or all of them are 0.
    """
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
    """Compute unit surface normals from the right and the lower neighbour of each pixel.

    The normal is the cross product of the two differences, divided by the product of the three depths. With w = 1 / z,
    a = w - w_right and b = w - w_lower, this is (fx a, fy b, (cx - u) a + (cy - v) b - w) at column u and row v.

    Args:
        depth: The depth map, `[H, W]`.
        out: Array to write to and return, float32 `[3, H, W]`; None allocates one.

    Returns:
        float32 `[3, H, W]` (x right, y down, z away from the camera), pointing towards the camera; 0 where one of the
        three pixels is not valid.
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
    """Write the normals of the rows from `top` on into `found [3, rows, W]`, in place: memory is the bottleneck."""
    fx, fy, cx, cy = (np.float32(number) for number in depth.intrinsics)
    rows, width = known.shape
    count = known.size
    inverse = np.ones((rows + 1, width), np.float32)  # one more row, for the lower neighbours
    metres = depth.metres[top : top + rows + 1]
    np.clip(metres, *SQUARABLE, out=inverse[: len(metres)])
    np.divide(1, inverse, out=inverse)
    here, everything = inverse[:rows], inverse.ravel()
    a, b, c = found
    # Flattened: `known` masks the last column, whose right neighbour is wrong.
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
    """3D points in metres, float32 `[3, H, W]` (x right, y down, z away from the camera); 0 where not valid."""
    x, y = rays(depth)
    return np.stack([x * depth.metres, y * depth.metres, depth.metres])


def rays(depth: DepthMap) -> tuple[np.ndarray, np.ndarray]:
    """The viewing rays (x, y, 1) of all pixels: x `[W]` and y `[H, 1]`, float32."""
    fx, fy, cx, cy = (np.float32(number) for number in depth.intrinsics)
    height, width = depth.metres.shape
    x = (np.arange(width, dtype=np.float32) - cx) / fx
    return x, (np.arange(height, dtype=np.float32)[:, None] - cy) / fy


def down(normal: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Estimate the direction of gravity from surface normals: floors are perpendicular to it, walls parallel.

    Five iterations use the surfaces within 45 degrees of the expected direction, five those within 15 degrees (Gupta,
    Arbelaez and Malik 2013).

    Args:
        normal: Unit normals `[N, 3]`; a few thousand are enough.
        start: Initial guess, e.g. (0, 1, 0) for an upright camera.

    Returns:
        A unit vector `[3]`.
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
    """Compute height above the lowest surface and angle to gravity (Gupta et al. 2014, arXiv 1407.5736).

    Returns:
        Height in metres `[H, W]`, 0 where unknown, and angle in radians `[H, W]` from 0 (ceiling) to pi (floor), pi /
        2 where unknown.
    """
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
