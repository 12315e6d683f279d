"""Point clouds from scanners, LiDAR and meshes, as a fixed number of points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import cv2
import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from modalities.base import Caption, Modality
from modalities.colour_map import turbo, turbo_css
from modalities.encoders import Encoder, build
from modalities.encoders.pointnet import PointNet
from modalities.geometry import Geometry
from modalities.point_file import read_points

SIDE = 128
"""Longer side of a picture in pixels."""


@dataclass(frozen=True, kw_only=True)
class Points(Modality):
    """Point clouds from `.ply`, `.pcd`, `.npz` (`points`, `xyz` or the first array [N, C]), `.npy` and LiDAR `.bin`.

    The shared flip mirrors x, which is correct for clouds in camera coordinates (x right). The shared crop is not
    applied, since it is unknown which points of a cloud are in the crop of a photo. Normals among the extra columns are
    neither mirrored nor rotated.

    Args:
        count: Number of input points: taken at even intervals in the file; in training, redrawn at random every time.
            Smaller clouds repeat points.
        extra: Number of columns after x, y and z to use as input, in the order of the file, e.g. LiDAR intensity,
            normals or colours. 8-bit columns of `.ply` and `.pcd` are scaled to [0, 1]; all others are unchanged.
        columns: Number of float32 values per point in a `.bin`: 4 for KITTI, 5 for nuScenes.
        radius: Distance from the origin that is scaled to 1, in units of the file. If None, the cloud is centred on its
            mean and scaled to the unit sphere.
        up: The vertical axis.
        rotation: In training, the cloud is randomly rotated about the vertical axis by up to this many degrees in both
            directions. 0 disables it.
        scaling: In training, coordinates are multiplied by a random factor from [1 - scaling, 1 + scaling]. 0 disables
            it.
        jitter: In training, standard deviation of Gaussian noise on each coordinate, in units of the radius. 0 disables
            it.
        field: Name of the shard field if it is not `points`.
    """

    name: ClassVar[str] = "points"
    fields: ClassVar[tuple[str, ...]] = ("points.ply", "points.pcd", "points.npz", "points.npy", "points.bin")
    encoders: ClassVar[Mapping[str, type[Encoder]]] = {"pointnet": PointNet}

    count: Annotated[int, Gt(0)] = 1024
    extra: Annotated[int, Ge(0)] = 0
    columns: Annotated[int, Ge(3)] = 4
    radius: Annotated[float, Gt(0)] | None = None
    up: Literal["x", "y", "z"] = "z"
    rotation: Annotated[float, Ge(0), Le(180)] = 15.0
    scaling: Annotated[float, Ge(0), Lt(1)] = 0.1
    jitter: Annotated[float, Ge(0)] = 0.01
    field: str | None = None

    def decode(self, data: bytes, meta: Mapping[str, Any]) -> np.ndarray:
        """x, y, z in the file's units and the extra columns, float32 or float64 `[N, 3 + extra]`, all finite."""
        return read_points(data, self.columns, self.extra)

    def augment(self, value: np.ndarray, geometry: Geometry, size: int, rng: np.random.Generator | None) -> Tensor:
        """float32 `[count, 3 + extra]`."""
        turn = np.eye(3)
        if rng is not None:  # drawn before the points, so it does not depend on their number
            turn = rotation_about(self.up, math.radians(rng.uniform(-self.rotation, self.rotation)))
            turn *= rng.uniform(1 - self.scaling, 1 + self.scaling)
        chosen = value[chosen_rows(len(value), self.count, rng)].astype(np.float64)
        place = self.scaled(chosen[:, :3])
        if geometry.flip:
            place[:, 0] *= -1
        place = place @ turn.T
        if rng is not None:
            place += self.jitter * rng.standard_normal(place.shape)
        return torch.from_numpy(np.concatenate([place, chosen[:, 3:]], 1, dtype=np.float32, casting="same_kind"))

    def scaled(self, place: np.ndarray) -> np.ndarray:
        """Coordinates `[N, 3]` divided by the radius, or, without one, scaled to the unit sphere around their mean."""
        if self.radius is not None:
            return place / self.radius
        centred = place - place.mean(0)
        farthest = np.linalg.norm(centred, axis=1).max()
        return centred / farthest if farthest > 0 else centred

    def collate(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        """`points [B, count, 3 + extra]` and `mask [B, count]`, all True, which encoders of point sets expect."""
        points = torch.stack(list(values))
        return {"points": points, "mask": torch.ones(points.shape[:2], dtype=torch.bool)}

    def encoder(self, spec: Mapping[str, Any]) -> Encoder:
        return build(self.encoders, spec, 3 + self.extra)

    def picture(self, value: np.ndarray) -> np.ndarray:
        """Render along the shortest axis, which is shown as colour: LiDAR from above, upright objects frontally."""
        across, along, depth = self.axes(value)
        low, high = shown_range(value)
        longest = max(float((high - low).max()), 1e-12)
        width, height = (max(round(SIDE * float(high[a] - low[a]) / longest), SIDE // 4) for a in (across, along))
        coarse = min(max(3 * math.sqrt(len(value)), SIDE / 4) / SIDE, 1)  # few points are drawn larger
        columns, rows = round(coarse * width), round(coarse * height)
        place = (value[:, :3] - low) / np.where(high > low, high - low, 1)
        place = place[np.argsort(place[:, depth], kind="stable")]  # high or near points cover others
        place = place[((place >= 0) & (place <= 1))[:, [across, along]].all(1)]
        column = (place[:, across] * (columns - 1)).round().astype(int)
        row = ((1 - place[:, along]) * (rows - 1)).round().astype(int)
        picture = np.zeros((rows, columns, 3), np.uint8)
        picture[row, column] = turbo((place[:, depth].clip(0, 1) * 255).astype(np.uint8)[None])[0]
        return cv2.resize(picture, (width, height), interpolation=cv2.INTER_NEAREST)

    def axes(self, value: np.ndarray) -> tuple[int, int, int]:
        """The axes that point right, up and towards the viewer in the picture."""
        low, high = shown_range(value)
        depth = int(np.argmin(high - low))
        across, along = (axis for axis in range(3) if axis != depth)
        return (along, across, depth) if across == "xyz".index(self.up) else (across, along, depth)

    def caption(self, value: np.ndarray) -> Caption:
        """The number of points, and the meaning of the picture's colours."""
        low, high = shown_range(value)
        depth = self.axes(value)[2]
        return Caption(f"{len(value)} points; {'xyz'[depth]} {low[depth]:.2f} to {high[depth]:.2f}", turbo_css())


def chosen_rows(rows: int, count: int, rng: np.random.Generator | None) -> np.ndarray:
    """Select `count` rows: evenly without rng, else at random. No row is repeated before all have been used."""
    if rng is None:
        return np.arange(count) * rows // count
    whole = np.tile(np.arange(rows), count // rows)
    return np.concatenate([whole, rng.choice(rows, count % rows, replace=False, shuffle=False)])


def rotation_about(axis: str, angle: float) -> np.ndarray:
    """The matrix `[3, 3]` that rotates column vectors by this many radians about an axis."""
    turn, (first, second) = np.eye(3), {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    turn[[first, second], [first, second]] = math.cos(angle)
    turn[second, first], turn[first, second] = math.sin(angle), -math.sin(angle)
    return turn


def shown_range(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The displayed range of x, y and z: the 1st to 99th percentile, which ignores outliers."""
    low = np.percentile(value[:, :3], 1, axis=0, method="lower")  # if there are few points, all are shown
    return low, np.percentile(value[:, :3], 99, axis=0, method="higher")
