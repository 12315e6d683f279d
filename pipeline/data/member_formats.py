"""File formats of members, and validation of their bytes: the same rules for packing and for checking."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import PurePath

import cv2
import numpy as np

from modalities.audio import PLAYED, read_sound
from modalities.depth_map import gravity, intrinsics
from modalities.exif import orientation
from modalities.image_header import image_size
from modalities.numpy_file import read_array, read_map
from modalities.palette import palette_indices
from modalities.point_file import points_kind, raw_floats, read_points
from modalities.sound_header import sound_kind
from modalities.text import Text
from modalities.tiff_header import BEGINS, tiff_size
from modalities.torchaudio_loader import import_soundfile

SUFFIXES: dict[str, tuple[str, ...]] = {
    "rgb": ("jpg", "png", "webp"),
    "depth": ("png", "npy", "npz", "tiff"),
    "points": ("ply", "pcd", "npz", "npy", "bin"),
    "mask": ("png",),
    "text": ("txt",),
    "audio": ("wav", "flac", "ogg", "mp3"),
    "meta": ("json",),
}
"""Known field -> allowed file extensions. Other fields accept any file except pickles."""

SAME_FORMAT = {"jpeg": "jpg", "tif": "tiff", "opus": "ogg", "oga": "ogg"}
"""Suffix of source files -> suffix of the same format in shards."""

_CURES = {
    **dict.fromkeys(("m4a", "mp4", "aac", "wma"), "convert it: ffmpeg -i FILE.{0} FILE.flac"),
    "exr": 'convert it to metres: pip install openexr numpy, then python -c "import numpy, OpenEXR; numpy.save('
    "'FILE.npy', OpenEXR.File('FILE.exr').channels()['Z'].pixels)\", with the name of the channel",
}
"""Suffix that is not read -> what to do."""

LONGEST_SUFFIX = 14
"""Maximum length of an extension. A ustar name has 100 bytes: key 64, field 20, extension 14, and two dots."""

_PICKLES = ("pkl", "pickle", "pyd", "pt", "pth", "joblib")
_HOW_DEPTH = "depth must be a single-channel 16-bit PNG or TIFF in millimetres, 0 = no depth; convert it before packing"

LARGEST_META = 1 << 20
"""Bytes of a `meta.json`."""


@dataclass(frozen=True)
class Facts:
    """Properties of a member.

    Attributes:
        size: Width and height of an image in pixels.
        orientation: EXIF orientation of a photo; 1 means as stored. `size` already takes it into account.
        depth: Depth map in millimetres, `[H, W]`, uint16 or float32; 0 = no depth.
        mask: Single-channel image of a field other than depth, `[H, W]`.
    """

    size: tuple[int, int] | None = None
    orientation: int = 1
    depth: np.ndarray | None = None
    mask: np.ndarray | None = None


def member_name(field: str, path: str) -> str:
    """Derive the member name for a source file of a field: `rgb`, `a/b.JPEG` -> `rgb.jpg`.

    Args:
        field: Name of the field.
        path: Path of the source file.

    Raises:
        ValueError: The field name is invalid, or the field does not allow this file extension.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,19}", field) or field == "label":
        raise ValueError(
            f"`{field}` is not a valid field name: use a lower-case word of up to 20 letters, except `label`"
        )
    written = PurePath(path).suffix.lower().lstrip(".")
    suffix = SAME_FORMAT.get(written, written)
    allowed = SUFFIXES.get(field)
    if suffix in _PICKLES:
        raise ValueError(f"{field}: .{suffix} files can execute code when they are opened, so they are never packed")
    if len(suffix) > LONGEST_SUFFIX:
        raise ValueError(f"{field}: the file extension has {len(suffix)} letters; the maximum is {LONGEST_SUFFIX}")
    if not suffix or (allowed and suffix not in allowed):
        cure = _CURES.get(suffix, "convert it before packing").format(suffix)
        wanted = " or ".join(f".{kind}" for kind in allowed) if allowed else "a file with an extension"
        raise ValueError(f"{field}: expected {wanted}, got a `.{written}` file; {cure}")
    return f"{field}.{suffix}"


def field_of(member: str) -> str:
    """The field of a member: `audio.mp3` -> `audio`. A field may have different extensions in different samples."""
    return member.partition(".")[0]


def inspect(member: str, data: bytes) -> Facts:
    """Decode and validate a member.

    Args:
        member: Name of the member.
        data: Its bytes.

    Returns:
        Properties of the member.

    Raises:
        ValueError: The member is invalid. The message states what was found and what is expected.
    """
    if not data:
        raise ValueError("the file is empty")
    field, _, suffix = member.partition(".")
    if suffix in ("jpg", "png", "webp") or member == "depth.tiff":
        return _image(field, data)
    if member == "label.txt":
        read_label(data)
    elif suffix == "txt":
        Text().decode(data, {})
    elif member == "meta.json":
        meta = read_meta(data)
        intrinsics(meta, 1, 1), gravity(meta)
    elif suffix in SUFFIXES["audio"]:
        _sound(suffix, data)
    elif field == "points":
        _points(suffix, data)
    elif suffix == "npy" or member == "depth.npz":
        return _array(field, data)
    return Facts()


def read_label(data: bytes, classes: int | None = None) -> int:
    """Parse the class index in a `label.txt`.

    Args:
        data: Bytes of the member.
        classes: Number of classes; None if unknown.

    Raises:
        ValueError: It is not a class index, or it is out of range.
    """
    if not re.fullmatch(rb"\d{1,9}\n?", data):
        raise ValueError(f"label {data[:20]!r} is not a class index")
    label = int(data)
    if classes is not None and label >= classes:
        raise ValueError(f"label {label} is out of range: there are {classes} classes, 0 to {classes - 1}")
    return label


def read_meta(data: bytes) -> dict[str, object]:
    """Parse a `meta.json`.

    Raises:
        ValueError: It is not a JSON object, or larger than LARGEST_META.
    """
    if len(data) > LARGEST_META:
        raise ValueError(f"meta.json is too large: {len(data)} bytes (maximum {LARGEST_META})")
    try:
        meta = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("meta is not JSON") from None
    if not isinstance(meta, dict):
        raise ValueError("meta is not a JSON object")
    return meta


def _image(field: str, data: bytes) -> Facts:
    """Decode an image and check that it is of a kind that its field allows."""
    is_tiff = field == "depth" and data.startswith(BEGINS)
    tiff_size(data) if is_tiff else image_size(data)
    # Read JPEGs in colour mode, as the loader does: this applies the EXIF orientation.
    flags = cv2.IMREAD_COLOR if data.startswith(b"\xff\xd8") else cv2.IMREAD_UNCHANGED
    image = palette_indices(data) if field not in ("rgb", "depth") else None
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if image is None else image
    except cv2.error:
        image = None
    if image is None:
        raise ValueError("the image cannot be decoded: truncated or damaged; copy it again")
    size = (image.shape[1], image.shape[0])
    kind = f"{image.shape[2] if image.ndim == 3 else 1}-channel {image.dtype.itemsize * 8}-bit"
    if field == "mask" and image.ndim != 2:
        raise ValueError(
            f"a {kind} image; a mask must have a single channel or a palette; write the class of each pixel"
        )
    if field != "depth":
        return Facts(size, orientation(data), mask=image if image.ndim == 2 else None)
    if image.ndim != 2 or image.dtype != np.uint16:
        raise ValueError(f"a {kind} image; {_HOW_DEPTH}")
    if not cv2.hasNonZero(image):
        raise ValueError("a depth map without any depth values (all 0)")
    return Facts(size, depth=image)


def summarise(depth: np.ndarray) -> tuple[float, float, bool]:
    """Summarise the values of a depth map.

    Args:
        depth: Depth map in millimetres, uint16 or float `[H, W]`, with at least one depth value; 0 = no depth.

    Returns:
        The median depth in millimetres; the fraction of values that are 65535; and whether all values are multiples
        of 10, which is False if there are fewer than ten distinct values.
    """
    if depth.dtype != np.uint16:
        return float(np.median(depth[depth > 0])), 0.0, False
    # Ten times faster than sorting.
    counts = cv2.calcHist([depth], [0], None, [65536], [0, 65536]).ravel()[1:].astype(np.int64)
    up_to = counts.cumsum()
    total = up_to[-1]
    middle = np.searchsorted(up_to, [(total - 1) // 2, total // 2], side="right") + 1
    coarse = np.count_nonzero(counts[9::10]) >= 10 and counts[9::10].sum() == total
    return float(middle.mean()), float(counts[-1] / total), bool(coarse)


def near_part(depth: np.ndarray) -> float:
    """The 10th percentile of the depth values in millimetres, which noise at large depths does not affect.

    Args:
        depth: Depth map in millimetres, `[H, W]`, with at least one depth value; 0 = no depth.
    """
    readings = depth[depth > 0]
    tenth = len(readings) // 10
    return float(np.partition(readings, tenth)[tenth])


def _array(field: str, data: bytes) -> Facts:
    """Read a NumPy array. Depth is in metres."""
    if field != "depth":
        read_array(data)
        return Facts()
    array = read_map(data)
    if array.ndim != 2 or array.dtype.kind != "f":
        raise ValueError(
            f"an array of {array.dtype} {list(array.shape)}; depth in .npy and .npz must be float [H, W] in metres"
        )
    read = np.isfinite(array)
    read &= array > 0
    if not read.any():
        raise ValueError("a depth map without any depth values")
    with np.errstate(over="ignore"):
        millimetres = np.zeros(array.shape, np.float32)  # uint16 would be limited to 65.5 m
        np.copyto(millimetres, array, where=read, casting="same_kind")
        millimetres *= 1000
    if not np.isfinite(millimetres).all():
        raise ValueError("a depth map with values that overflow float32; depth in .npy and .npz must be in metres")
    return Facts((array.shape[1], array.shape[0]), depth=millimetres)


def _points(suffix: str, data: bytes) -> None:
    """Read a point cloud. For `.bin` files, only the size is checked, since the config defines the columns."""
    if (kind := points_kind(data)) != suffix:
        cure = "; copy it again" if kind == "bin" else f" but those of a .{kind} file; rename it to .{kind}"
        raise ValueError(f"the bytes are not those of a .{suffix} file{cure}")
    read_points(data, columns=3, extra=0) if kind != "bin" else raw_floats(data, 1)


def _sound(suffix: str, data: bytes) -> None:
    """Decode a sound completely. Without the audio extra, only read its header."""
    if (kind := sound_kind(data)) != suffix:
        raise ValueError(f"a {kind} file with the extension .{suffix}; correct the extension")
    if can_hear():
        read_sound(data, PLAYED)


@cache
def can_hear() -> bool:
    """Whether audio can be decoded, i.e. the audio extra is installed."""
    try:
        return bool(import_soundfile())
    except ImportError:
        return False
