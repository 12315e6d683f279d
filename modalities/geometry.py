"""One geometry a sample: a crop and a flip, drawn once and replayed by every image-like modality and by masks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Geometry:
    """A crop box in fractions of the source's width and height, then a horizontal flip.

    Fractions, not pixels, so that an RGB photo and a depth map of other resolution see the same part of the scene.
    A box may reach out of [0, 1]: what lies there is 0 (black, no reading).
    """

    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0
    flip: bool = False

    @staticmethod
    def draw(rng: np.random.Generator, area: tuple[float, float], flip: bool) -> Geometry:
        """Draw a crop that covers a fraction of the source's area between `area[0]` and `area[1]`."""
        side = float(np.sqrt(rng.uniform(*area)))
        # Neither side may pass the source's, or the crop would lose area there.
        aspect = float(np.clip(np.exp(rng.uniform(-0.15, 0.15)), side, 1 / side))
        width, height = min(side * aspect, 1.0), min(side / aspect, 1.0)
        left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
        flipped = bool(flip and rng.random() < 0.5)
        return Geometry(left, top, left + width, top + height, flipped)

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """The crop in whole pixels of a source of that size, at least one: x0, y0, x1, y1, ends excluded."""
        x0, y0 = min(round(self.left * width), width - 1), min(round(self.top * height), height - 1)
        x1, y1 = max(round(self.right * width), x0 + 1), max(round(self.bottom * height), y0 + 1)
        return x0, y0, x1, y1

    def crop(self, image: np.ndarray) -> np.ndarray:
        """Cut the box out of `image [H, W, ...]` and flip it, at the source's resolution; inside it, a view."""
        box = self.cut(image)
        return box[:, ::-1] if self.flip else box

    def cut(self, image: np.ndarray) -> np.ndarray:
        """The box as it lies in the source, not flipped."""
        height, width = image.shape[:2]
        x0, y0, x1, y1 = self.box(height, width)
        box = image[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
        if min(x0, y0) < 0 or x1 > width or y1 > height:
            outside = [(max(-y0, 0), max(y1 - height, 0)), (max(-x0, 0), max(x1 - width, 0))]
            box = np.pad(box, [*outside, *[(0, 0)] * (image.ndim - 2)])
        return box

    def resize(self, image: np.ndarray, size: int, nearest: bool = False) -> np.ndarray:
        """Crop, flip, scale to `[size, size, ...]`, averaging where it shrinks; `nearest` for labels and masks."""
        box = self.cut(image)
        if self.flip:
            box = cv2.flip(box, 1)  # ten times as fast as a copy of the flipped view
        if nearest:  # _EXACT takes the pixel at the centre; plain INTER_NEAREST is shifted up and left
            return cv2.resize(box, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)
        # Linear interpolation spans two pixels: blur over what it would skip. Unlike INTER_AREA, whose fractional edges
        # put steps into slopes and thus into the normals of depth, this keeps a ramp a ramp at any ratio.
        height, width = (2 * math.ceil(side / size / 2) - 1 for side in box.shape[:2])
        if height > 1 or width > 1:
            box = cv2.blur(box, (width, height), borderType=cv2.BORDER_REPLICATE)
        return cv2.resize(box, (size, size), interpolation=cv2.INTER_LINEAR)

    def intrinsics(
        self, source: tuple[float, float, float, float], shape: tuple[int, ...], size: int
    ) -> tuple[float, float, float, float]:
        """fx, fy, cx, cy of `resize`'s result, from those of a source of `shape [H, W]`; pixel centres are integers."""
        fx, fy, cx, cy = source
        x0, y0, x1, y1 = self.box(*shape[:2])
        x, y = size / (x1 - x0), size / (y1 - y0)
        cx, cy = (cx - x0 + 0.5) * x - 0.5, (cy - y0 + 0.5) * y - 0.5
        return fx * x, fy * y, (size - 1 - cx) if self.flip else cx, cy
