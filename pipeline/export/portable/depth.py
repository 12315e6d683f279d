"""Preprocessing of depth maps. Requires numpy and opencv-python-headless."""

import io
import json
import math
from pathlib import Path

import cv2
import numpy as np

ABOUT = json.loads((Path(__file__).parent / "preprocessing.json").read_text())
SIZE, CROP, SET = ABOUT["size"], ABOUT["crop"], ABOUT["settings"]


def read(data: bytes, intrinsics: tuple[float, float, float, float] | None = None) -> dict[str, np.ndarray]:
    """Decode a 16-bit PNG or TIFF, or a `.npy` file or an `.npz` file with one array in metres.

    Args:
        data: The bytes of the file.
        intrinsics: fx, fy, cx, cy in pixels. None assumes a horizontal field of view of 60 degrees. Required for
            disparity.

    Returns:
        `depth`, float32 [C, size, size]; for points, `points` [N, 3] and `mask` [N].

    Raises:
        ValueError: The file cannot be read, or disparity is required but intrinsics are missing.
    """
    if data.startswith((b"\x93NUMPY", b"PK\x03\x04")):
        metres = np.load(io.BytesIO(data), allow_pickle=False)
        if not isinstance(metres, np.ndarray):
            (name,) = metres.files
            metres = metres[name]
        metres = metres[..., 0] if metres.ndim == 3 and metres.shape[2] == 1 else metres
        valid = np.isfinite(metres) & (metres > 0)
        metres = np.where(valid, metres, 0).astype(np.float32)
    else:
        raw = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if raw is None or raw.ndim != 2 or raw.dtype != np.uint16:
            raise ValueError("not a PNG or TIFF with one channel of 16 bits")
        metres, valid = raw * np.float32(SET["scale"]), raw > 0
    rows, columns = metres.shape
    focal = columns / 2 / math.tan(math.radians(30))
    fx, fy, cx, cy = intrinsics or (focal, focal, (columns - 1) / 2, (rows - 1) / 2)
    if SET["baseline"] is not None:
        if intrinsics is None:
            raise ValueError(
                "this network was trained on disparity: pass the camera intrinsics, read(data, intrinsics)"
            )
        metres = np.divide(fx * SET["baseline"], metres, out=np.zeros_like(metres), where=valid)
    y_part, x_part = centre(rows), centre(columns)
    metres, valid = metres[y_part, x_part], valid[y_part, x_part]
    (rows, columns), cx, cy = metres.shape, cx - x_part.start, cy - y_part.start
    weight, total = resize(valid.astype(np.float32), SIZE), resize(metres, SIZE)
    valid = weight > least_weight(weight)
    metres = np.divide(total, weight, out=np.zeros_like(total), where=valid)
    x, y = SIZE / columns, SIZE / rows
    camera = fx * x, fy * y, (cx + 0.5) * x - 0.5, (cy + 0.5) * y - 0.5
    if SET["input"] == "points":
        return points(scaled_vertices(metres, valid, camera), valid)
    return {"depth": np.concatenate(channels(metres, valid, camera)).astype(np.float32)}


def least_weight(weight: np.ndarray) -> np.float32:
    """Half of the source pixels must have a depth value; in a sparse map such as LiDAR, any of them suffices."""
    readings = float(weight.sum())
    return np.float32(0.499 if float((weight * weight).sum()) >= 0.5 * readings else 1e-5)


def batch(samples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Combine results of `read` into one input of the network; point sets are padded."""
    most = {name: max(len(sample[name]) for sample in samples) for name in samples[0]}
    return {
        name: np.stack(
            [np.pad(s[name], [(0, most[name] - len(s[name])), *[(0, 0)] * (s[name].ndim - 1)]) for s in samples]
        )
        for name in samples[0]
    }


def channels(metres: np.ndarray, valid: np.ndarray, camera: tuple[float, ...]) -> list[np.ndarray]:
    """The channels of the input for the setting `input`, `[C, size, size]` in total."""
    mask = valid[None].astype(np.float32)
    if SET["input"] == "image":
        return [(scaled(metres, valid)[None] + 1) / 2 * mask] * 3
    if SET["input"] == "inverse":
        near, far = 1 / SET["near"], 1 / SET["far"]
        inverse = np.divide(1, metres, out=np.zeros_like(metres), where=valid)
        scale = np.clip((inverse - np.float32(far)) / np.float32(near - far) * 2 - 1, -1, 1)
        return [scale[None] * mask, mask]
    if SET["input"] == "vertex":
        return [scaled_vertices(metres, valid, camera).transpose(2, 0, 1) * mask, mask]
    return [scaled(metres, valid)[None] * mask, mask]


def middle_and_half(metres: np.ndarray, valid: np.ndarray) -> tuple[np.float32, np.float32]:
    """The depth in metres that maps to 0, and the distance from there to the depth that maps to 1."""
    if SET["centre"]:
        return np.float32(np.median(metres[valid]) if valid.any() else 0), np.float32(SET["span"])
    return np.float32((SET["near"] + SET["far"]) / 2), np.float32((SET["far"] - SET["near"]) / 2)


def scaled(metres: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Scale metres to [-1, 1]."""
    middle, half = middle_and_half(metres, valid)
    return np.clip((metres - middle) / half, -1, 1)


def scaled_vertices(metres: np.ndarray, valid: np.ndarray, camera: tuple[float, ...]) -> np.ndarray:
    """The 3D points [size, size, 3], scaled to [-1, 1]."""
    fx, fy, cx, cy = map(np.float32, camera)
    x = (np.arange(SIZE, dtype=np.float32) - cx) / fx * metres
    y = (np.arange(SIZE, dtype=np.float32)[:, None] - cy) / fy * metres
    middle, half = middle_and_half(metres, valid)
    vertices = np.stack([x, y, metres], -1) * valid[..., None]
    return np.clip((vertices - np.array([0, 0, middle], np.float32)) / half, -1, 1)


def points(vertices: np.ndarray, valid: np.ndarray) -> dict[str, np.ndarray]:
    """Choose evenly spaced points [N, 3] among the valid pixels."""
    readings = np.flatnonzero(valid)
    count = min(len(readings), SET["points"])
    if count == 0:
        return {"points": np.zeros((1, 3), np.float32), "mask": np.ones(1, bool)}
    even = np.linspace(0, len(readings) - 1, count).round().astype(int)
    return {"points": vertices.reshape(-1, 3)[readings[even]].astype(np.float32), "mask": np.ones(count, bool)}


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
