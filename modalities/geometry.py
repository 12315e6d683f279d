"""One geometry a sample: a crop and a flip, drawn once and replayed by every image-like modality and by masks."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Geometry:
    """A crop box in fractions of the source's width and height, in [0, 1], then a horizontal flip.

    Fractions, not pixels, so that an RGB photo and a depth map of other resolution see the same part of the scene.
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
        aspect = float(np.exp(rng.uniform(-0.15, 0.15))) if area[0] < 1 else 1.0
        width, height = min(side * aspect, 1.0), min(side / aspect, 1.0)
        left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
        flipped = bool(flip and rng.random() < 0.5)
        return Geometry(left, top, left + width, top + height, flipped)

    def crop(self, image: np.ndarray) -> np.ndarray:
        """Cut the box out of `image [H, W, ...]` and flip it, at the source's resolution; a view, not a copy."""
        height, width = image.shape[:2]
        x0, y0 = min(round(self.left * width), width - 1), min(round(self.top * height), height - 1)
        x1, y1 = max(round(self.right * width), x0 + 1), max(round(self.bottom * height), y0 + 1)
        box = image[y0:y1, x0:x1]
        return box[:, ::-1] if self.flip else box

    def resize(self, image: np.ndarray, size: int, nearest: bool = False) -> np.ndarray:
        """Crop, flip, and scale to `[size, size, ...]`; averages where it shrinks. `nearest` for labels and masks."""
        box = np.ascontiguousarray(self.crop(image))
        shrinks = box.shape[0] > size or box.shape[1] > size
        method = cv2.INTER_NEAREST if nearest else cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        return cv2.resize(box, (size, size), interpolation=method)
