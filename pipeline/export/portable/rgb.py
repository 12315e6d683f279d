"""Preprocessing of RGB images. Requires numpy and opencv-python-headless."""

import json
import math
from pathlib import Path

import cv2
import numpy as np

ABOUT = json.loads((Path(__file__).parent / "preprocessing.json").read_text())
SIZE, CROP = ABOUT["size"], ABOUT["crop"]


def read(data: bytes) -> dict[str, np.ndarray]:
    """Decode a JPEG, PNG or WebP. Transparency is blended with white; 16-bit images are reduced to 8 bits.

    Args:
        data: The bytes of the file.

    Returns:
        `rgb`, uint8 [3, size, size].

    Raises:
        ValueError: The file cannot be read.
    """
    flags = cv2.IMREAD_COLOR if data.startswith(b"\xff\xd8") else cv2.IMREAD_UNCHANGED
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None or image.dtype not in (np.uint8, np.uint16):
        raise ValueError("cannot read the image")
    if image.dtype == np.uint16:
        image = cv2.convertScaleAbs(image, alpha=255 / 65535)
    if image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    if image.shape[2] == 4:
        alpha = image[..., 3:].astype(np.float32) / 255
        image = (255 + alpha * (image[..., :3] - np.float32(255))).round().astype(np.uint8)
    y, x = (centre(side) for side in image.shape[:2])
    image = resize(cv2.cvtColor(image, cv2.COLOR_BGR2RGB)[y, x], SIZE)
    return {"rgb": np.ascontiguousarray(image.transpose(2, 0, 1))}


def batch(samples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Combine results of `read` into one input of the network."""
    return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}


def centre(side: int) -> slice:
    """The centre crop along one side of the image."""
    edge = (1 - CROP) / 2
    start = min(round(edge * side), side - 1)
    return slice(start, max(round((1 - edge) * side), start + 1))


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Resize to [size, size], averaging when downscaling."""
    height, width = (2 * math.ceil(side / size / 2) - 1 for side in image.shape[:2])
    if height > 1 or width > 1:
        image = cv2.blur(image, (width, height), borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
