"""Depth maps: metres per pixel, with a mask of valid pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import cv2
import numpy as np
import numpy.ma  # numpy would import it in every loader process, when a median is first computed
import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from modalities.base import Caption, Modality
from modalities.colour_map import turbo, turbo_css
from modalities.depth_map import DepthMap, gravity, hha, intrinsics, normals, transform, vertices
from modalities.encoders import IMAGE_ENCODERS, Encoder, build
from modalities.encoders.pointnet import PointNet
from modalities.geometry import Geometry
from modalities.image_header import image_size
from modalities.numpy_file import ARCHIVE, read_map
from modalities.tiff_header import BEGINS, tiff_size

TALLEST = 2.5
"""Height in metres above the lowest surface that `hha` maps to 1."""

KINDS: dict[str, bytes | tuple[bytes, ...]] = {"TIFF": BEGINS, "JPEG": b"\xff\xd8", "WebP": b"RIFF"}
"""Kind of image other than PNG -> how such a file begins."""

VALIDITY = {"depth": 1, "depth+normals": 1, "inverse": 1}
"""Kind of input -> index of the validity channel; for all others, it is the last of four."""


@dataclass(frozen=True, kw_only=True)
class Depth(Modality):
    """Depth maps from 16-bit PNG or TIFF, or from `.npy` or `.npz` in metres.

    The input of the encoder is float32, and 0 where a pixel has no depth value. The kinds of `input` are:

    - `depth`: depth in [-1, 1]; the second channel is validity (0 or 1).
    - `depth+normals`: the same, followed by the unit surface normal, oriented towards the camera (axes: x right, y
      down, z away).
    - `normals`: the surface normal and validity.
    - `inverse`: 1 / depth in [-1, 1], 1 at `near`, and validity.
    - `vertex`: x, y, z of the point, scaled like depth, and validity.
    - `hha`: inverse depth, height above the lowest surface / 2.5 m, angle to gravity in [-1, 1], and validity. Gravity
      is read from `meta["gravity"]`; if missing, it is estimated from floors and walls.
    - `image`: depth in [0, 1], repeated to 3 channels for networks that need RGB input; no validity.
    - `points`: a subset of the vertices (at most the setting `points`), for the encoder `pointnet`. In training, it is
      redrawn at random every time.

    Args:
        input: What the encoder receives; see above.
        scale: Metres per unit of the PNG or TIFF; 0.001 means millimetres.
        baseline: Distance between two cameras in metres. If set, the PNG contains disparity in units of `scale` pixels,
            and depth is fx * baseline / disparity.
        near: Depth in metres that maps to -1. Smaller values are clipped.
        far: Depth in metres that maps to 1. Larger values are clipped.
        centre: Instead of `near` to `far`, map `span` metres in both directions around the median depth of the crop to
            [-1, 1], which removes the distance from the camera.
        span: Distance in metres from the median depth to the depth that maps to 1, for `centre`.
        points: Maximum number of points, for `input: points`.
        jitter: In training, the depth of a sample is multiplied by a random factor from [1 - jitter, 1 + jitter].
        dropout: In training, mean fraction of pixels whose depth is dropped, as single pixels and as one rectangle.
        quantisation: In training, depth is rounded to steps of up to this many metres at 1 m. The steps grow with the
            square of the depth, as in stereo cameras. 0 disables it.
        ragged: In training, each pixel takes its depth from a random pixel up to this many pixels away. This keeps
            planes intact and makes edges ragged. 0 disables it.
        field: Name of the shard field if it is not `depth`.

    Raises:
        ValueError: `near` is not smaller than `far`, or is 0 for an input that uses 1 / depth.
    """

    name: ClassVar[str] = "depth"
    fields: ClassVar[tuple[str, ...]] = ("depth.png", "depth.npy", "depth.npz", "depth.tiff")
    revision: ClassVar[int] = 2  # 2: sparse maps keep their depth values when downscaled
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
            raise ValueError(f"near: must be above 0 for input: {self.input}, which uses 1 / depth")

    @property
    def channels(self) -> int:
        """Number of channels C that `augment` returns for this `input`."""
        return {"depth": 2, "inverse": 2, "depth+normals": 5, "image": 3, "points": 3}.get(self.input, 4)

    def decode(self, data: bytes, meta: Mapping[str, Any]) -> DepthMap:
        """Decode depth, validity, intrinsics and gravity.

        Args:
            data: A 16-bit PNG or TIFF, or a `.npy` file or an `.npz` file with one array in metres.
            meta: `meta["intrinsics"]` contains fx, fy, cx, cy in pixels, and also width and height if they refer to an
                image of another resolution. Without intrinsics, the horizontal field of view is assumed to be 60
                degrees.

        Raises:
            ValueError: The file cannot be read or has no valid pixels, or it contains disparity and `meta` has no
                intrinsics.
        """
        if data.startswith((b"\x93NUMPY", ARCHIVE)):
            read = read_metres(data)
            valid = np.isfinite(read)
            valid &= read > 0
            metres: np.ndarray = np.zeros(read.shape, np.float32)
            np.copyto(metres, read, where=valid, casting="same_kind")
        else:
            raw = read_raw(data)
            metres, valid = raw * np.float32(self.scale), raw > 0
        if not valid.any():
            raise ValueError("the depth map has no valid pixels")
        camera = intrinsics(meta, *metres.shape)
        if self.baseline is not None:
            if meta.get("intrinsics") is None:
                raise ValueError(
                    "cannot convert disparity to metres (`baseline` is set): meta.json has no intrinsics; "
                    "pack the dataset with `--intrinsics fx,fy,cx,cy`"
                )
            metres = np.divide(camera[0] * self.baseline, metres, out=np.zeros_like(metres), where=valid)
        return DepthMap(metres, valid, camera, gravity(meta))

    def augment(self, value: DepthMap, geometry: Geometry, size: int, rng: np.random.Generator | None) -> Tensor:
        """Crop, flip and augment: float32 `[channels, size, size]`; for points, `[N, 3]` with N at most `points`."""
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
        """Write the channels into `seen [C, size, size]`. Normals use all depth values, also dropped ones."""
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
        """Sample points `[N, 3]`, evenly spaced if `rng` is None; a single point at 0 if no pixel is valid."""
        readings = np.flatnonzero(kept)
        count = min(len(readings), self.points)
        if count == 0:
            return torch.zeros(1, 3)
        even = np.linspace(0, len(readings) - 1, count).round().astype(int)
        chosen = readings[even if rng is None else rng.choice(len(readings), count, replace=False, shuffle=False)]
        return torch.from_numpy(self.scaled_vertices(depth, kept).reshape(3, -1).T[chosen])

    def middle_and_half(self, metres: np.ndarray, valid: np.ndarray) -> tuple[np.float32, np.float32]:
        """The depth in metres that maps to 0, and the distance from there to the depth that maps to 1."""
        if self.centre:
            return np.float32(np.median(metres[valid]) if valid.any() else 0), np.float32(self.span)
        return np.float32((self.near + self.far) / 2), np.float32((self.far - self.near) / 2)

    def scaled(self, metres: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Scale metres to [-1, 1]."""
        middle, half = self.middle_and_half(metres, valid)
        found = metres - middle
        found /= half
        return np.clip(found, -1, 1, out=found)

    def scaled_vertices(self, depth: DepthMap, valid: np.ndarray) -> np.ndarray:
        """The 3D points `[3, size, size]`, scaled to [-1, 1]."""
        middle, half = self.middle_and_half(depth.metres, valid)
        points = vertices(depth)
        points[2] -= middle
        points /= half
        return np.clip(points, -1, 1, out=points)

    def inverse(self, depth: DepthMap) -> np.ndarray:
        """Scale 1 / depth to [-1, 1]: -1 at `far` and beyond, 1 at `near` and closer."""
        nearest, farthest = np.float32(1 / self.near), np.float32(1 / self.far)
        scale = 2 / (nearest - farthest)
        return np.maximum(scale / np.maximum(depth.metres, np.float32(self.near)) - (farthest * scale + 1), -1)

    def collate(self, values: Sequence[Tensor]) -> Any:
        """Stack to `[B, C, size, size]`; pad points to `points [B, N, 3]` with `mask [B, N]`, True for real points."""
        if self.input != "points":
            return torch.stack(list(values))
        mask = pad_sequence([torch.ones(len(value), dtype=torch.bool) for value in values], batch_first=True)
        return {"points": pad_sequence(list(values), batch_first=True), "mask": mask}

    def coverage(self, batch: Any) -> Tensor | None:
        """The fraction of valid pixels; None for `points`, which are sampled from valid pixels."""
        if self.input == "points":
            return None
        # `image` has no validity channel, but is 0 only at `near` and at invalid pixels.
        valid = batch[:, 0] != 0 if self.input == "image" else batch[:, VALIDITY.get(self.input, 3)]
        return valid.float().mean((1, 2))

    def encoder(self, spec: Mapping[str, Any]) -> Encoder:
        if (spec.get("name") == "pointnet") != (self.input == "points"):
            raise ValueError(
                f"encoder {spec.get('name')}: pointnet requires `input: points`; all other encoders require images"
            )
        return build(self.encoders, spec, self.channels)

    def picture(self, value: DepthMap) -> np.ndarray:
        """Render near as blue, far as red and missing as black; the colour range is the 2nd to 98th percentile."""
        if not value.valid.any():
            return np.zeros((*value.valid.shape, 3), np.uint8)
        near, far = shown_range(value)
        shade = np.clip((value.metres - near) / max(far - near, 1e-6) * 255, 0, 255).astype(np.uint8)
        return turbo(shade) * value.valid[..., None]

    def caption(self, value: DepthMap) -> Caption:
        """The depth in metres at both ends of the colour scale of `picture`."""
        if not value.valid.any():
            return Caption("no depth values")
        near, far = shown_range(value)
        return Caption(f"{near:.2f} to {far:.2f} m", turbo_css())


def shown_range(depth: DepthMap) -> tuple[float, float]:
    """Depth in metres of the nearest and the farthest colour of `picture`."""
    near, far = np.percentile(depth.metres[depth.valid], (2, 98))
    return float(near), float(far)


def dropped(size: int, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a mask `[size, size]` of dropped pixels: half of them single pixels, half in one rectangle.

    Args:
        size: Side of the mask in pixels.
        fraction: Mean fraction of True, in [0, 1).
        rng: Source of randomness.
    """
    rate, area = rng.uniform(0, fraction, 2)
    side = math.sqrt(area)
    aspect = min(max(math.exp(rng.uniform(-0.5, 0.5)), side), 1 / side)  # keeps the rectangle inside the mask
    width, height = side * aspect, side / aspect
    left, top = rng.random(2) * (1 - width, 1 - height)
    x0, x1, y0, y1 = (round(edge * size) for edge in (left, left + width, top, top + height))
    # The pixels are drawn last, so views of different sizes get the same rectangle. A Poisson number of draws with
    # replacement drops each pixel with probability `rate`, like one draw per pixel, but faster.
    mask = np.zeros((size, size), bool)
    mask.ravel()[rng.integers(size * size, size=rng.poisson(-math.log1p(-rate) * size * size))] = True
    mask[y0:y1, x0:x1] = True
    return mask


def quantised(metres: np.ndarray, step: float) -> np.ndarray:
    """Round 1 / depth to whole steps, which correspond to `step` metres at 1 m and four times as much at 2 m."""
    if step == 0:
        return metres
    disparity = np.divide(1, metres, out=np.zeros_like(metres), where=metres > 0)
    levels = np.maximum(np.round(disparity / np.float32(step)), 1) * np.float32(step)
    return np.where(metres > 0, 1 / levels, 0).astype(np.float32)


def frayed(depth: DepthMap, pixels: int, rng: np.random.Generator) -> DepthMap:
    """Replace each depth value by one up to `pixels` away: the random shifts of Barron and Malik (2013)."""
    height, width = depth.metres.shape
    shift = rng.integers(-pixels, pixels + 1, (2, height, width))
    rows = np.clip(np.arange(height)[:, None] + shift[0], 0, height - 1)
    columns = np.clip(np.arange(width) + shift[1], 0, width - 1)
    return replace(depth, metres=depth.metres[rows, columns], valid=depth.valid[rows, columns])


def read_raw(data: bytes) -> np.ndarray:
    """Decode a 16-bit PNG or TIFF to uint16 `[H, W]`.

    Raises:
        ValueError: `data` is not a complete PNG or TIFF with one channel of 16 bits.
    """
    kind = next((kind for kind, begins in KINDS.items() if data.startswith(begins)), "PNG")
    tiff_size(data) if kind == "TIFF" else image_size(data)  # rejects decompression bombs
    try:
        raw = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        raw = None
    if raw is None:
        raise ValueError(f"cannot read a {kind} from {len(data)} bytes; depth requires a complete 16-bit PNG or TIFF")
    if raw.ndim != 2:
        raise ValueError(
            f"a {kind} with {raw.shape[2]} channels: depth requires a 16-bit PNG or TIFF with one channel, or .npy"
        )
    if raw.dtype != np.uint16:
        kind = f"{'signed ' if raw.dtype.kind == 'i' else ''}{8 * raw.itemsize}-bit {kind}"
        raise ValueError(f"{kind}: depth requires 16 bits; convert it to a 16-bit PNG in millimetres")
    return raw


def read_metres(data: bytes) -> np.ndarray:
    """Read float `[H, W]` in metres from a `.npy` file, or an `.npz` file with one array.

    Raises:
        ValueError: `data` is not a two-dimensional float array. Pickles are rejected.
    """
    metres = read_map(data)
    if metres.ndim != 2 or metres.dtype.kind != "f":
        raise ValueError(f"depth.npy must be float [H, W] in metres, but it is {metres.dtype} {list(metres.shape)}")
    return metres
