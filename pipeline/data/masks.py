"""Segmentation masks: decoding, and the target that follows a sample's geometry."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from modalities.base import Geometry
from modalities.image_header import image_size
from modalities.palette import palette_indices


def read_mask(data: bytes, values: Sequence[int]) -> np.ndarray:
    """Decode a mask.

    Args:
        data: A PNG with one channel of 8 or 16 bits, or with a palette, whose indices are the pixel values.
        values: Pixel value of each class.

    Returns:
        The class of each pixel, int32 `[H, W]`; -1 (ignored) for other pixel values.

    Raises:
        ValueError: `data` is not a PNG of this kind.
    """
    image_size(data)  # rejects decompression bombs
    image = palette_indices(data)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if image is None else image
    except cv2.error:
        image = None
    if image is None or image.ndim != 2 or image.dtype not in (np.uint8, np.uint16):
        raise ValueError("not a mask; expected a PNG with one channel of 8 or 16 bits, or a palette")
    classes = np.full(1 << 16, -1, np.int32)
    classes[list(values)] = np.arange(len(values))
    return classes[image]


def target(mask: np.ndarray | None, geometry: Geometry, size: int) -> Tensor:
    """Apply the geometry of a sample to its mask.

    Args:
        mask: Class of each pixel, int32 `[H, W]`; None if there is no mask.
        geometry: Geometry of the sample.
        size: Side of the result in pixels.

    Returns:
        The target, int64 `[size, size]`; -1 where unknown.
    """
    if mask is None:
        return torch.full((size, size), -1)
    # Classes are shifted by one: the geometry pads with 0, and padded pixels must become -1.
    return torch.from_numpy(geometry.resize(mask.astype(np.int32, copy=False) + 1, size, nearest=True)).long() - 1
