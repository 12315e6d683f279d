"""RGB images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import cv2
import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor

from modalities.base import Modality
from modalities.encoders import IMAGE_ENCODERS, Encoder, build
from modalities.geometry import Geometry
from modalities.image_header import image_size

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IDENTITY = np.eye(3)
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, what "grey" means in cv2 and PIL

ROWS = 64
"""Number of rows that are converted at a time, so that the memory of a large image stays small."""


@dataclass(frozen=True, kw_only=True)
class RGB(Modality):
    """Photos as uint8 RGB.

    Args:
        jitter: In training, brightness, contrast and saturation are each multiplied by a random factor from [1 -
            jitter, 1 + jitter]. 0 disables it.
        field: Name of the shard field if it is not `rgb`, e.g. a second camera or another style of drawing.
    """

    name: ClassVar[str] = "rgb"
    fields: ClassVar[tuple[str, ...]] = ("rgb.jpg", "rgb.png", "rgb.webp")
    encoders: ClassVar[Mapping[str, type[Encoder]]] = IMAGE_ENCODERS

    jitter: Annotated[float, Ge(0), Le(1)] = 0.2
    field: str | None = None

    @property
    def random(self) -> bool:
        return self.jitter > 0

    def decode(self, data: bytes, meta: Mapping[str, Any]) -> np.ndarray:
        """Decode to uint8 `[H, W, 3]`: 16 bits are reduced to 8, grey is repeated, transparency is blended with white.

        JPEGs are rotated according to their EXIF orientation; the orientation of PNG and WebP files is ignored.

        Raises:
            ValueError: The bytes are not a complete JPEG, PNG or WebP.
        """
        image_size(data)  # rejects decompression bombs and truncated files
        is_jpeg = data.startswith(b"\xff\xd8")
        # Only IMREAD_UNCHANGED returns transparency, and it ignores EXIF.
        flags = cv2.IMREAD_COLOR if is_jpeg else cv2.IMREAD_UNCHANGED
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        except cv2.error:
            image = None
        if image is None or image.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"cannot read an image from {len(data)} bytes; expected a complete JPEG, PNG or WebP")
        if image.dtype == np.uint8 and image.shape[2:] == (3,):
            return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, image)
        seen = np.empty((*image.shape[:2], 3), np.uint8)
        for top in range(0, len(image), ROWS):  # intermediate results need up to 30 bytes per pixel
            seen[top : top + ROWS] = _to_rgb(image[top : top + ROWS])
        return seen

    def augment(self, value: np.ndarray, geometry: Geometry, size: int, rng: np.random.Generator | None) -> Tensor:
        """Crop, flip, scale and jitter: uint8 `[3, size, size]`."""
        return torch.from_numpy(self.view(value, geometry, size, rng)).permute(2, 0, 1)

    def view(self, value: np.ndarray, geometry: Geometry, size: int, rng: np.random.Generator | None) -> np.ndarray:
        """The same as uint8 `[size, size, 3]`."""
        image = geometry.resize(value, size)
        if rng is not None and self.jitter > 0:
            image = cv2.transform(image, colour_map(image, *rng.uniform(1 - self.jitter, 1 + self.jitter, 3)))
        return image

    def collate(self, values: Sequence[Tensor]) -> Tensor:
        """Stack to `[B, C, size, size]` in channels-last memory format, which is faster for convolutions."""
        return torch.stack([value.permute(1, 2, 0) for value in values]).permute(0, 3, 1, 2)

    def encoder(self, spec: Mapping[str, Any]) -> Encoder:
        return build(self.encoders, spec, 3, IMAGENET_MEAN, IMAGENET_STD)

    def picture(self, value: np.ndarray) -> np.ndarray:
        return value


def _to_rgb(image: np.ndarray) -> np.ndarray:
    """Convert grey, BGR or BGRA of 8 or 16 bits to uint8 RGB."""
    if image.dtype == np.uint16:
        image = cv2.convertScaleAbs(image, alpha=255 / 65535)
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    if image.shape[2] == 4 and image[..., 3].min() < 255:
        # With three equal channels and in place: memory is the bottleneck.
        alpha = cv2.cvtColor(np.ascontiguousarray(image[..., 3]), cv2.COLOR_GRAY2RGB).astype(np.float32)
        alpha /= 255
        blended = cv2.cvtColor(image, cv2.COLOR_BGRA2RGB).astype(np.float32)
        blended -= 255
        blended *= alpha
        blended += 255
        return np.rint(blended, out=blended).astype(np.uint8)
    return cv2.cvtColor(image[..., :3], cv2.COLOR_BGR2RGB)


def colour_map(image: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    """The affine map `[3, 4]` of a pixel that applies saturation, contrast (around the mean grey) and brightness."""
    mean_grey = float(LUMA @ np.array(cv2.mean(image)[:3]))
    found = np.empty((3, 4))
    np.multiply(brightness * contrast, saturation * IDENTITY + (1 - saturation) * LUMA, out=found[:, :3])
    found[:, 3] = brightness * (1 - contrast) * mean_grey
    return found
