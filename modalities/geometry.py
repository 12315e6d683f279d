"""The crop and flip of a sample, drawn once and applied to all image-like modalities and to masks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np


@dataclass(frozen=True)
class Geometry:
    """A crop box in fractions of the width and height of the source, then a horizontal flip.

    With fractions instead of pixels, an RGB image and a depth map of different resolutions show the same part of the
    scene. A box may extend beyond [0, 1]; the outside is 0 (black, no depth).

    Args:
        left: Left edge of the box.
        top: Top edge of the box.
        right: Right edge of the box.
        bottom: Bottom edge of the box.
        flip: Mirror the crop horizontally.
    """

    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0
    flip: bool = False

    @staticmethod
    def draw(rng: np.random.Generator, area: tuple[float, float], flip: bool) -> Geometry:
        """Draw a random crop and flip.

        Args:
            rng: Source of randomness.
            area: Minimum and maximum area of the crop, as a fraction of the source.
            flip: Whether to mirror half of the samples.
        """
        side = math.sqrt(rng.uniform(*area))
        # A side longer than the source would be clipped and reduce the area.
        aspect = min(max(float(np.exp(rng.uniform(-0.15, 0.15))), side), 1 / side)
        width, height = min(side * aspect, 1.0), min(side / aspect, 1.0)
        left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
        flipped = bool(flip and rng.random() < 0.5)
        return Geometry(left, top, left + width, top + height, flipped)

    def centre(self, share: float) -> Geometry:
        """The centre part of the box, with sides of this fraction of its sides."""
        if share == 1:
            return self
        x, y = (self.right - self.left) * (1 - share) / 2, (self.bottom - self.top) * (1 - share) / 2
        return replace(self, left=self.left + x, top=self.top + y, right=self.right - x, bottom=self.bottom - y)

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """The crop in whole pixels of a source of this size: x0, y0, x1, y1, ends excluded; at least one pixel."""
        x0, y0 = min(round(self.left * width), width - 1), min(round(self.top * height), height - 1)
        x1, y1 = max(round(self.right * width), x0 + 1), max(round(self.bottom * height), y0 + 1)
        return x0, y0, x1, y1

    def crop(self, image: np.ndarray) -> np.ndarray:
        """Crop and flip `image [H, W, ...]` at its own resolution. Returns a view if the box lies inside the image."""
        box = self._cut(image)
        return box[:, ::-1] if self.flip else box

    def _cut(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        x0, y0, x1, y1 = self.box(height, width)
        box = image[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
        if min(x0, y0) < 0 or x1 > width or y1 > height:
            padded = np.zeros((y1 - y0, x1 - x0, *image.shape[2:]), image.dtype)  # a tenth of the time of np.pad
            top, left = max(-y0, 0), max(-x0, 0)
            padded[top : top + box.shape[0], left : left + box.shape[1]] = box
            return padded
        return box

    def resize(self, image: np.ndarray, size: int, nearest: bool = False) -> np.ndarray:
        """Crop, flip and scale an image.

        Args:
            image: `[H, W, ...]`.
            size: Side of the result in pixels.
            nearest: Use nearest-neighbour interpolation, for labels and masks. Otherwise linear interpolation, with
                averaging when downscaling.

        Returns:
            `[size, size, ...]` of the same dtype.
        """
        box = self._cut(image)
        if self.flip:  # resizing a contiguous copy is faster than resizing a mirrored view
            box = cv2.flip(box, 1)
        if nearest:  # plain INTER_NEAREST is shifted up and left
            return cv2.resize(box, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)
        # Linear interpolation reads two pixels, so blur before downsampling. Unlike INTER_AREA, whose fractional edges
        # add steps to slopes and thus to the normals of depth, this keeps a linear ramp linear at any ratio.
        height, width = (2 * math.ceil(side / size / 2) - 1 for side in box.shape[:2])
        if height > 1 or width > 1:
            box = cv2.blur(box, (width, height), borderType=cv2.BORDER_REPLICATE)
        return cv2.resize(box, (size, size), interpolation=cv2.INTER_LINEAR)

    def intrinsics(
        self, source: tuple[float, float, float, float], shape: tuple[int, ...], size: int
    ) -> tuple[float, float, float, float]:
        """Transform camera intrinsics as `resize` transforms the image; pixel centres are integers.

        Args:
            source: fx, fy, cx, cy in pixels of the source.
            shape: Shape of the source, `[H, W]` or `[H, W, C]`.
            size: Side of the result in pixels.

        Returns:
            fx, fy, cx, cy in pixels of the result.
        """
        fx, fy, cx, cy = source
        x0, y0, x1, y1 = self.box(*shape[:2])
        x, y = size / (x1 - x0), size / (y1 - y0)
        cx, cy = (cx - x0 + 0.5) * x - 0.5, (cy - y0 + 0.5) * y - 0.5
        return fx * x, fy * y, (size - 1 - cx) if self.flip else cx, cy
