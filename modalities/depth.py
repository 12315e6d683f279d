"""Depth maps: metres per pixel, with pixels that the sensor could not read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import cv2
import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from modalities.base import Modality
from modalities.encoders import IMAGE_ENCODERS, Encoder, build
from modalities.geometry import Geometry

FIELD_OF_VIEW = math.radians(60)  # horizontal; assumed where meta.json has no intrinsics, near most depth cameras'


@dataclass(frozen=True)
class DepthMap:
    """metres float32 `[H, W]`, 0 where not valid bool `[H, W]`; intrinsics fx, fy, cx, cy in its pixels.

    Pixel centres are whole numbers: the point at metres z in column u lies at x = (u - cx) / fx * z.
    """

    metres: np.ndarray
    valid: np.ndarray
    intrinsics: tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Depth(Modality):
    """Depth maps from 16-bit PNG.

    scale: metres per unit of the PNG; 0.001 is millimetres.
    input: what the encoder sees, float32. `depth`: depth in [-1, 1] and validity 0 or 1; `depth+normals`: also the
    unit surface normal (x right, y down, z away from the camera; it faces the camera); `image`: depth in [0, 1] three
    times, for networks made for 3 channels. All are 0 where there is no reading.
    near, far: the metres that become -1 and 1; what is beyond is clipped.
    centre: -1 to 1 is instead `span` metres around the crop's median depth, so that distance from the camera drops out.
    jitter: in training, all depth of a sample is multiplied by a factor drawn from 1 - jitter to 1 + jitter; 0: not.
    dropout: in training, the mean fraction of pixels that lose their reading, singly and in a rectangle; 0: none.
    """

    name: ClassVar[str] = "depth"
    fields: ClassVar[tuple[str, ...]] = ("depth.png",)
    encoders: ClassVar[Mapping[str, type[Encoder]]] = IMAGE_ENCODERS

    input: Literal["depth", "depth+normals", "image"] = "depth"
    scale: Annotated[float, Gt(0)] = 0.001
    near: Annotated[float, Ge(0)] = 0.0
    far: Annotated[float, Gt(0)] = 10.0
    centre: bool = False
    span: Annotated[float, Gt(0)] = 1.0
    jitter: Annotated[float, Ge(0), Lt(1)] = 0.02
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.05

    def __post_init__(self) -> None:
        if self.near >= self.far:
            raise ValueError(f"near: {self.near} must be smaller than far: {self.far}")

    @property
    def channels(self) -> int:
        return {"depth": 2, "depth+normals": 5, "image": 3}[self.input]

    def decode(self, data: bytes, meta: Mapping[str, Any]) -> DepthMap:
        """Metres, validity and intrinsics.

        `meta["intrinsics"]` has fx, fy, cx, cy in pixels and, if they are of an image of another resolution, its width
        and height. Without it the horizontal field of view is taken to be 60 degrees.
        """
        try:
            raw = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        except cv2.error:
            raw = None
        if raw is None:
            raise ValueError(f"{len(data)} bytes are not a readable PNG; depth needs a whole 16-bit PNG")
        if raw.ndim != 2:
            raise ValueError(f"PNG with {raw.shape[2]} channels: depth needs one channel of 16 bit")
        if raw.dtype != np.uint16:
            raise ValueError("8-bit PNG: depth needs 16 bit in millimetres (or set scale to its metres per unit)")
        return DepthMap(raw * np.float32(self.scale), raw > 0, intrinsics(meta, *raw.shape))

    def augment(self, value: DepthMap, geometry: Geometry, size: int, rng: np.random.Generator | None) -> Tensor:
        """float32 `[channels, size, size]`."""
        depth = transform(value, geometry, size)
        metres, valid = depth.metres, depth.valid
        if rng is not None:
            metres = metres * np.float32(rng.uniform(1 - self.jitter, 1 + self.jitter))
            if self.dropout > 0:
                valid = valid & ~dropped(size, self.dropout, rng)
        scaled = np.where(valid, self.scaled(metres, valid), np.float32(0))
        if self.input == "image":
            return torch.from_numpy(np.where(valid, (scaled + 1) / 2, 0)).expand(3, -1, -1).contiguous()
        channels = [scaled[None], valid[None].astype(np.float32)]
        if self.input == "depth+normals":
            channels.append(normals(depth).transpose(2, 0, 1) * valid)
        return torch.from_numpy(np.concatenate(channels))

    def scaled(self, metres: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Metres to [-1, 1]."""
        if self.centre:
            middle, half = (float(np.median(metres[valid])) if valid.any() else 0.0), self.span
        else:
            middle, half = (self.near + self.far) / 2, (self.far - self.near) / 2
        return np.clip((metres - np.float32(middle)) / np.float32(half), -1, 1)

    def encoder(self, spec: Mapping[str, Any]) -> Encoder:
        return build(self.encoders, spec, self.channels)

    def picture(self, value: DepthMap) -> np.ndarray:
        """Near is blue, far is red, no reading is black; the range is the 2nd to 98th percentile."""
        if not value.valid.any():
            return np.zeros((*value.valid.shape, 3), np.uint8)
        near, far = np.percentile(value.metres[value.valid], (2, 98))
        shade = np.clip((value.metres - near) / max(far - near, 1e-6) * 255, 0, 255).astype(np.uint8)
        colours = cv2.cvtColor(cv2.applyColorMap(shade, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
        return colours * value.valid[..., None]


def transform(depth: DepthMap, geometry: Geometry, size: int) -> DepthMap:
    """Crop, flip and scale depth and intrinsics to `[size, size]`.

    A pixel's metres are the mean over its valid sources; it is valid if they are at least half of them.
    """
    weight = geometry.resize(depth.valid.astype(np.float32), size)
    total = geometry.resize(depth.metres, size)
    valid = weight > 0.499  # half, but for rounding
    metres = np.divide(total, weight, out=np.zeros_like(total), where=valid)
    return DepthMap(metres, valid, geometry.intrinsics(depth.intrinsics, depth.metres.shape, size))


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


def normals(depth: DepthMap) -> np.ndarray:
    """Unit normals float32 `[H, W, 3]`, from each pixel's right and lower neighbour; 0 where one is not valid."""
    from modalities.open3d_loader import import_open3d

    o3d = import_open3d()
    fx, fy, cx, cy = depth.intrinsics
    matrix = o3d.core.Tensor(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]))
    metres = o3d.t.geometry.Image(o3d.core.Tensor(np.ascontiguousarray(depth.metres[..., None])))
    return metres.create_vertex_map(matrix, 0.0).create_normal_map(0.0).as_tensor().numpy()


def dropped(size: int, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """A mask `[size, size]` of lost readings, on average that fraction: half as single pixels, half a rectangle."""
    rate, area = rng.uniform(0, fraction, 2)
    side = math.sqrt(area)
    aspect = min(max(math.exp(rng.uniform(-0.5, 0.5)), side), 1 / side)  # so that the rectangle fits
    width, height = side * aspect, side / aspect
    left, top = rng.random(2) * (1 - width, 1 - height)
    x0, x1, y0, y1 = (round(edge * size) for edge in (left, left + width, top, top + height))
    # The pixels come last: a view of another size has drawn the same rectangle by then.
    mask = rng.random((size, size), dtype=np.float32) < rate
    mask[y0:y1, x0:x1] = True
    return mask
