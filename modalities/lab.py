"""Luminance and chrominance of a photo in CIE L*a*b*: two paired modalities from one sensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import cv2
import numpy as np
import torch
from torch import Tensor

from modalities.encoders import Encoder, build
from modalities.geometry import Geometry
from modalities.rgb import RGB

WHITE = 100.0
"""L* of white, the unit of luminance."""

CHROMA = 110.0
"""The unit of chroma. In sRGB, a* lies in -86.2..98.3 and b* in -107.9..94.5, so both stay within [-1, 1]."""

GREY = 65.0
"""L* that `Chroma.picture` uses."""


@dataclass(frozen=True, kw_only=True)
class Luminance(RGB):
    """L* / 100 of a photo, in [0, 1], like a black-and-white photo. It has the same settings as `rgb`."""

    name: ClassVar[str] = "luminance"

    def augment(self, value: np.ndarray, geometry: Geometry, size: int, rng: np.random.Generator | None) -> Tensor:
        """float32 `[1, size, size]`."""
        return torch.from_numpy(lab(self.view(value, geometry, size, rng))[None, ..., 0] / np.float32(WHITE))

    def encoder(self, spec: Mapping[str, Any]) -> Encoder:
        return build(self.encoders, spec, 1, (0.5,), (0.25,))

    def picture(self, value: np.ndarray) -> np.ndarray:
        return _photo(lab(value) * np.array([1, 0, 0]))


@dataclass(frozen=True, kw_only=True)
class Chroma(RGB):
    """a* / 110 and b* / 110 of a photo (green to red, blue to yellow), within [-1, 1]; grey is 0.

    It has the same settings as `rgb`.
    """

    name: ClassVar[str] = "chroma"

    def augment(self, value: np.ndarray, geometry: Geometry, size: int, rng: np.random.Generator | None) -> Tensor:
        """float32 `[2, size, size]`."""
        colours = lab(self.view(value, geometry, size, rng))[..., 1:].transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(colours) / np.float32(CHROMA))

    def encoder(self, spec: Mapping[str, Any]) -> Encoder:
        return build(self.encoders, spec, 2, (0.0, 0.0), (0.15, 0.15))

    def picture(self, value: np.ndarray) -> np.ndarray:
        return _photo(lab(value) * np.array([0, 1, 1]) + np.array([GREY, 0, 0]))


def lab(photo: np.ndarray) -> np.ndarray:
    """Convert uint8 sRGB `[H, W, 3]` to CIE L*a*b* under D65, float32, accurate to 0.4.

    Returns:
        `[H, W, 3]`: L* in 0..100, a* and b* in -108..99.
    """
    return cv2.cvtColor(photo.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)


def _photo(values: np.ndarray) -> np.ndarray:
    rgb = cv2.cvtColor(values.astype(np.float32), cv2.COLOR_Lab2RGB)
    return (rgb.clip(0, 1) * 255).round().astype(np.uint8)
