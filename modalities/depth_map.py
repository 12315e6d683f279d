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
    metres = total / np.maximum(weight, np.float32(0.499)) * valid
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
    """Unit normals float32 `[3, H, W]` (x right, y down, z away from the camera, which they face), from each pixel's
    right and lower neighbour; 0 where one of the three is not valid.

    The cross product of the two differences, over the product of the neighbours' depths and focal lengths: with
    a = fx (1 - z / z_right) and b = fy (1 - z / z_lower) it is (a, b, -1 - x a - y b) on the ray (x, y, 1).
    """
    fx, fy = (np.float32(focal) for focal in depth.intrinsics[:2])
    x, y = rays(depth)
    height, width = depth.metres.shape
    found = np.zeros((3, height, width), np.float32)
    # In place and in whole rows: at these sizes the time goes into memory. What is right of the last column is masked.
    a, b, c = found[:, :-1]
    z = np.maximum(depth.metres, np.float32(1e-6)).ravel()  # finite where it does not count
    here = z[: a.size].reshape(a.shape)
    for out, neighbour, focal in ((a, 1, fx), (b, width, fy)):
        np.divide(here, z[neighbour : neighbour + a.size].reshape(a.shape), out=out)
        np.subtract(1, out, out=out)
        out *= focal
    np.multiply(a, -x, out=c)
    c -= b * y[:-1]
    c -= 1
    known = depth.valid[:-1] & depth.valid[1:]
    known[:, :-1] &= depth.valid[:-1, 1:]
    known[:, -1] = False
    scale = known / np.sqrt(a * a + b * b + c * c)  # cv2.magnitude's last bit depends on where arrays lie in memory
    for part in (a, b, c):
        part *= scale
    return found


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
