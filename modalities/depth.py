"""Depth maps: metres per pixel, with pixels that the sensor could not read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import cv2
import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from modalities.base import Caption, Modality
from modalities.depth_map import DepthMap, gravity, hha, intrinsics, normals, transform, vertices
from modalities.encoders import IMAGE_ENCODERS, Encoder, build
from modalities.encoders.pointnet import PointNet
from modalities.geometry import Geometry
from modalities.image_header import image_size
from modalities.numpy_file import read_array

TALLEST = 2.5
"""Metres above the lowest surface that the height of `hha` is scaled to."""


@dataclass(frozen=True, kw_only=True)
class Depth(Modality):
    """Depth maps from 16-bit PNG, or from `.npy` in metres.

    scale: metres per unit of the PNG; 0.001 is millimetres. baseline: metres between two cameras; the PNG then holds
    disparity, `scale` pixels a unit, and depth is fx * baseline / disparity.
    input: what the encoder sees, float32, 0 where there is no reading. With validity, 0 or 1, as the last channel:
    `depth`: depth in [-1, 1], validity second; `depth+normals`: then also the unit surface normal (x right, y down, z
    away from the camera; it faces the camera); `normals`: that alone; `inverse`: 1 / depth in [-1, 1], 1 at `near`;
    `vertex`: the point's x, y, z, scaled as depth is; `hha`: inverse depth, height above the lowest surface over 2.5 m,
    angle to gravity in [-1, 1] (from `meta["gravity"]`, or as floors and walls suggest). Without validity: `image`:
    depth in [0, 1] three times, for networks made for 3 channels. `points`: up to `points` of the vertices, drawn anew
    in training, for the encoder `pointnet`.
    near, far: the metres that become -1 and 1; what is beyond is clipped.
    centre: -1 to 1 is instead `span` metres around the crop's median depth, so that distance from the camera drops out.
    jitter: in training, all depth of a sample is multiplied by a factor drawn from 1 - jitter to 1 + jitter; 0: not.
    dropout: in training, the mean fraction of pixels that lose their reading, singly and in a rectangle; 0: none.
    quantisation: in training, readings are rounded to steps of up to that many metres at 1 m, which grow with the
    square of the distance, as a stereo camera's do; 0: not. ragged: in training, each reading is taken up to that many
    pixels beside its place, which leaves planes as they are and frays edges; 0: not.
    field: of the shards, where it is not `depth`.
    """

    name: ClassVar[str] = "depth"
    fields: ClassVar[tuple[str, ...]] = ("depth.png", "depth.npy")
    encoders: ClassVar[Mapping[str, type[Encoder]]] = {**IMAGE_ENCODERS, "pointnet": PointNet}

    input: Literal["depth", "depth+normals", "normals", "inverse", "vertex", "hha", "image", "points"] = "depth"
    scale: Annotated[float, Gt(0)] = 0.001
    baseline: Annotated[float, Gt(0)] | None = None
    near: Annotated[float, Ge(0)] = 0.0
    far: Annotated[float, Gt(0)] = 10.0
    centre: bool = False
    span: Annotated[float, Gt(0)] = 1.0
    points: Annotated[int, Gt(0)] = 1024
    jitter: Annotated[float, Ge(0), Lt(1)] = 0.02
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.05
    quantisation: Annotated[float, Ge(0), Lt(1)] = 0.0
    ragged: Annotated[int, Ge(0)] = 0
    field: str | None = None

    def __post_init__(self) -> None:
        if self.near >= self.far:
            raise ValueError(f"near: {self.near} must be smaller than far: {self.far}")
        if self.input in ("inverse", "hha") and self.near == 0:
            raise ValueError(f"near: must be above 0 for input: {self.input}, which is 1 / depth")

    @property
    def channels(self) -> int:
        """Channels C of what `augment` makes with this `input`."""
        return {"depth": 2, "inverse": 2, "depth+normals": 5, "image": 3, "points": 3}.get(self.input, 4)

    def decode(self, data: bytes, meta: Mapping[str, Any]) -> DepthMap:
        """Metres, validity, intrinsics and gravity.

        `meta["intrinsics"]` has fx, fy, cx, cy in pixels and, if they are of an image of another resolution, its width
        and height. Without it the horizontal field of view is taken to be 60 degrees, but disparity is a ValueError.
        """
        if data.startswith(b"\x93NUMPY"):
            metres = read_metres(data)
            valid = np.isfinite(metres) & (metres > 0)
            metres = np.where(valid, metres, 0).astype(np.float32)
        else:
            raw = read_png(data)
            metres, valid = raw * np.float32(self.scale), raw > 0
        if not valid.any():
            raise ValueError("a depth map without a single reading")
        camera = intrinsics(meta, *metres.shape)
        if self.baseline is not None:
            if meta.get("intrinsics") is None:
                raise ValueError(
                    "disparity (`baseline` is set) becomes metres by the focal length, and the sample has no "
                    "intrinsics in meta.json; pack it with `--intrinsics fx,fy,cx,cy`"
                )
            metres = np.divide(camera[0] * self.baseline, metres, out=np.zeros_like(metres), where=valid)
        return DepthMap(metres, valid, camera, gravity(meta))

    def augment(self, value: DepthMap, geometry: Geometry, size: int, rng: np.random.Generator | None) -> Tensor:
        """float32 `[channels, size, size]`; of points `[at most points, 3]`."""
        depth = transform(value, geometry, size)
        kept = depth.valid
        if rng is not None:
            if self.ragged:
                depth = frayed(depth, self.ragged, rng)
            if self.quantisation > 0:
                depth = replace(depth, metres=quantised(depth.metres, rng.uniform(0, self.quantisation)))
            kept = depth.valid
            factor = np.float32(rng.uniform(1 - self.jitter, 1 + self.jitter))
            depth = replace(depth, metres=depth.metres * factor)
            if self.dropout > 0:
                kept = depth.valid & ~dropped(size, self.dropout, rng)
        if self.input == "points":
            return self.sample(depth, kept, rng)
        seen = np.empty((self.channels, size, size), np.float32)
        self.fill(seen, depth, kept)
        seen *= kept.astype(np.float32)
        return torch.from_numpy(seen)

    def fill(self, seen: np.ndarray, depth: DepthMap, kept: np.ndarray) -> None:
        """Write the channels into `seen [C, size, size]`; normals see all readings, kept or not."""
        match self.input:
            case "depth":
                seen[0], seen[1] = self.scaled(depth.metres, kept), kept
            case "depth+normals":
                seen[0], seen[1] = self.scaled(depth.metres, kept), kept
                normals(depth, seen[2:])
            case "normals":
                seen[3] = kept
                normals(depth, seen[:3])
            case "image":
                seen[:] = (self.scaled(depth.metres, kept) + 1) / 2
            case "inverse":
                seen[0], seen[1] = self.inverse(depth), kept
            case "vertex":
                seen[:3], seen[3] = self.scaled_vertices(depth, kept), kept
            case "hha":
                height, angle = hha(depth)
                seen[0], seen[3] = self.inverse(depth), kept
                np.minimum(height / TALLEST, 1, out=seen[1])
                np.subtract(angle / np.float32(math.pi / 2), 1, out=seen[2])

    def sample(self, depth: DepthMap, kept: np.ndarray, rng: np.random.Generator | None) -> Tensor:
        """Points `[N, 3]`, evenly over the readings without rng; one at 0 where there is no reading."""
        readings = np.flatnonzero(kept)
        count = min(len(readings), self.points)
        if count == 0:
            return torch.zeros(1, 3)
        even = np.linspace(0, len(readings) - 1, count).round().astype(int)
        chosen = readings[even if rng is None else rng.choice(len(readings), count, replace=False, shuffle=False)]
        return torch.from_numpy(self.scaled_vertices(depth, kept).reshape(3, -1).T[chosen])

    def middle_and_half(self, metres: np.ndarray, valid: np.ndarray) -> tuple[np.float32, np.float32]:
        """The metres that become 0, and those from there to 1."""
        if self.centre:
            return np.float32(np.median(metres[valid]) if valid.any() else 0), np.float32(self.span)
        return np.float32((self.near + self.far) / 2), np.float32((self.far - self.near) / 2)

    def scaled(self, metres: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Metres to [-1, 1]."""
        middle, half = self.middle_and_half(metres, valid)
        found = metres - middle
        found /= half
        return np.clip(found, -1, 1, out=found)

    def scaled_vertices(self, depth: DepthMap, valid: np.ndarray) -> np.ndarray:
        """Points `[3, size, size]` in [-1, 1]."""
        middle, half = self.middle_and_half(depth.metres, valid)
        points = vertices(depth)
        points[2] -= middle
        points /= half
        return np.clip(points, -1, 1, out=points)

    def inverse(self, depth: DepthMap) -> np.ndarray:
        """1 / depth to [-1, 1]: -1 at far and beyond, 1 at near and before."""
        nearest, farthest = np.float32(1 / self.near), np.float32(1 / self.far)
        scale = 2 / (nearest - farthest)
        return np.maximum(scale / np.maximum(depth.metres, np.float32(self.near)) - (farthest * scale + 1), -1)

    def collate(self, values: Sequence[Tensor]) -> Any:
        """`[B, C, size, size]`; of points `points [B, N, 3]` and `mask [B, N]`, True where there is one."""
        if self.input != "points":
            return torch.stack(list(values))
        mask = pad_sequence([torch.ones(len(value), dtype=torch.bool) for value in values], batch_first=True)
        return {"points": pad_sequence(list(values), batch_first=True), "mask": mask}

    def encoder(self, spec: Mapping[str, Any]) -> Encoder:
        if (spec.get("name") == "pointnet") != (self.input == "points"):
            raise ValueError(f"encoder {spec.get('name')}: pointnet reads `input: points`, the others read images")
        return build(self.encoders, spec, self.channels)

    def picture(self, value: DepthMap) -> np.ndarray:
        """Near is blue, far is red, no reading is black; the range is the 2nd to 98th percentile."""
        if not value.valid.any():
            return np.zeros((*value.valid.shape, 3), np.uint8)
        near, far = shown_range(value)
        shade = np.clip((value.metres - near) / max(far - near, 1e-6) * 255, 0, 255).astype(np.uint8)
        return turbo(shade) * value.valid[..., None]

    def caption(self, value: DepthMap) -> Caption:
        """The metres at both ends of the picture's colours."""
        if not value.valid.any():
            return Caption("no reading")
        near, far = shown_range(value)
        colours = tuple(
            "#{:02x}{:02x}{:02x}".format(*c) for c in turbo(np.linspace(0, 255, 6).astype(np.uint8)[None])[0]
        )
        return Caption(f"{near:.2f} to {far:.2f} m", colours)


def shown_range(depth: DepthMap) -> tuple[float, float]:
    """Metres of the nearest and the farthest colour, where there is a reading."""
    near, far = np.percentile(depth.metres[depth.valid], (2, 98))
    return float(near), float(far)


def turbo(shade: np.ndarray) -> np.ndarray:
    """uint8 `[H, W]` to RGB `[H, W, 3]`, from blue to red."""
    return cv2.cvtColor(cv2.applyColorMap(shade, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)


def dropped(size: int, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """A mask `[size, size]` of lost readings, on average that fraction: half as single pixels, half a rectangle."""
    rate, area = rng.uniform(0, fraction, 2)
    side = math.sqrt(area)
    aspect = min(max(math.exp(rng.uniform(-0.5, 0.5)), side), 1 / side)  # so that the rectangle fits
    width, height = side * aspect, side / aspect
    left, top = rng.random(2) * (1 - width, 1 - height)
    x0, x1, y0, y1 = (round(edge * size) for edge in (left, left + width, top, top + height))
    # The pixels come last: a view of another size has drawn the same rectangle by then. Throwing so many at random, a
    # pixel more than once, loses each of them with probability `rate`, as drawing a number for each would.
    mask = np.zeros((size, size), bool)
    mask.ravel()[rng.integers(size * size, size=rng.poisson(-math.log1p(-rate) * size * size))] = True
    mask[y0:y1, x0:x1] = True
    return mask


def quantised(metres: np.ndarray, step: float) -> np.ndarray:
    """Metres rounded to whole steps of 1 / metres: `step` metres at 1 m, four times as much at 2 m."""
    if step == 0:
        return metres
    disparity = np.divide(1, metres, out=np.zeros_like(metres), where=metres > 0)
    levels = np.maximum(np.round(disparity / np.float32(step)), 1) * np.float32(step)
    return np.where(metres > 0, 1 / levels, 0).astype(np.float32)


def frayed(depth: DepthMap, pixels: int, rng: np.random.Generator) -> DepthMap:
    """Each pixel with the reading of one up to `pixels` beside it (the random shifts of Barron and Malik, 2013)."""
    height, width = depth.metres.shape
    shift = rng.integers(-pixels, pixels + 1, (2, height, width))
    rows = np.clip(np.arange(height)[:, None] + shift[0], 0, height - 1)
    columns = np.clip(np.arange(width) + shift[1], 0, width - 1)
    return replace(depth, metres=depth.metres[rows, columns], valid=depth.valid[rows, columns])


def read_png(data: bytes) -> np.ndarray:
    """uint16 `[H, W]`; ValueError for anything else."""
    image_size(data)  # refuses what would unpack to gigabytes
    try:
        raw = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        raw = None
    if raw is None:
        raise ValueError(f"{len(data)} bytes are not a readable PNG; depth needs a whole 16-bit PNG")
    if raw.ndim != 2:
        raise ValueError(f"PNG with {raw.shape[2]} channels: depth needs one channel of 16 bit")
    if raw.dtype != np.uint16:
        raise ValueError("8-bit PNG: depth needs 16 bit in millimetres; convert it to 16 bit")
    return raw


def read_metres(data: bytes) -> np.ndarray:
    """float `[H, W]` of a `.npy`; ValueError for anything else, pickles included."""
    metres = read_array(data)
    if metres.ndim != 2 or metres.dtype.kind != "f":
        raise ValueError(f"an array of {metres.dtype} {list(metres.shape)}: depth.npy holds metres, float [H, W]")
    return metres
