"""What a sample's members may be, and whether their bytes are sound: the same rules for packing and for checking."""

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
from modalities.image_header import image_size
from modalities.numpy_file import read_array
from modalities.sound_header import sound_kind
from modalities.text import Text
from modalities.torchaudio_loader import import_soundfile

SUFFIXES: dict[str, tuple[str, ...]] = {
    "rgb": ("jpg", "png", "webp"),
    "depth": ("png", "npy"),
    "mask": ("png",),
    "text": ("txt",),
    "audio": ("wav", "flac", "ogg", "mp3"),
    "meta": ("json",),
}
"""The known fields and the kinds of file that each may be. Any other field takes any file that is not a pickle."""

LONGEST_SUFFIX = 14
"""Letters; with a key of 64, a field of 20 and two dots it makes the 100 bytes that a plain tar has for a name."""

_PICKLES = ("pkl", "pickle", "pyd", "pt", "pth", "joblib")
_HOW_DEPTH = "depth is a single-channel 16-bit PNG in millimetres, 0 = no reading; convert it before packing"


@dataclass(frozen=True)
class Facts:
    """What was seen in a member.

    size: width and height of an image. depth: a depth map in millimetres, 0 = no reading: uint16, or float.
    mask: an image of one channel, of another field.
    """

    size: tuple[int, int] | None = None
    depth: np.ndarray | None = None
    mask: np.ndarray | None = None


def member_name(field: str, path: str) -> str:
    """The shard member for a field's source file: `rgb`, `a/b.JPEG` -> `rgb.jpg`.

    Raises ValueError for a field name that cannot be a member, and for a kind of file that the field may not be.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,19}", field) or field == "label":
        raise ValueError(f"`{field}` cannot be a field: wanted is a lower-case word up to 20 letters, not `label`")
    suffix = PurePath(path).suffix.lower().lstrip(".")
    suffix = "jpg" if suffix == "jpeg" else suffix
    allowed = SUFFIXES.get(field)
    if suffix in _PICKLES:
        raise ValueError(f"{field}: .{suffix} files can run code when they are opened and are never packed")
    if len(suffix) > LONGEST_SUFFIX:
        raise ValueError(f"{field}: a suffix of {len(suffix)} letters; at most {LONGEST_SUFFIX} go into a tar's names")
    if not suffix or (allowed and suffix not in allowed):
        wanted = " or ".join(f".{kind}" for kind in allowed or ["a suffix"])
        raise ValueError(f"{field}: a `.{suffix}` file where {wanted} is wanted; convert it before packing")
    return f"{field}.{suffix}"


def field_of(member: str) -> str:
    """`audio.mp3` -> `audio`: a field may be of several kinds, one in each sample."""
    return member.partition(".")[0]


def inspect(member: str, data: bytes) -> Facts:
    """Open a member's bytes and say what is in them.

    Raises ValueError with what is wrong and what is wanted.
    """
    if not data:
        raise ValueError("the file is empty")
    field, _, suffix = member.partition(".")
    if suffix in ("jpg", "png", "webp"):
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
    elif suffix == "npy":
        return _array(field, data)
    return Facts()


def read_label(data: bytes, classes: int | None = None) -> int:
    """The class index in a `label.txt`. Raises ValueError if it is none, or not below the number of `classes`."""
    if not re.fullmatch(rb"\d{1,9}\n?", data):
        raise ValueError(f"label {data[:20]!r} is not a class index")
    label = int(data)
    if classes is not None and label >= classes:
        raise ValueError(f"label {label} is out of range: there are {classes} classes, 0 to {classes - 1}")
    return label


def read_meta(data: bytes) -> dict[str, object]:
    """The object in a `meta.json`. Raises ValueError if it is none."""
    try:
        meta = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("meta is not JSON") from None
    if not isinstance(meta, dict):
        raise ValueError("meta is not a JSON object")
    return meta


def _image(field: str, data: bytes) -> Facts:
    """Open an image and hold it against what its field wants."""
    image_size(data)
    flags = cv2.IMREAD_COLOR if data.startswith(b"\xff\xd8") else cv2.IMREAD_UNCHANGED  # JPEGs as the loader turns them
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        raise ValueError("the image does not decode: truncated or damaged; copy it again")
    size = (image.shape[1], image.shape[0])
    kind = f"{image.shape[2] if image.ndim == 3 else 1}-channel {image.dtype.itemsize * 8}-bit"
    if field == "mask" and image.ndim != 2:
        raise ValueError(f"a {kind} image; a mask has a single channel; convert it before packing")
    if field != "depth":
        return Facts(size, mask=image if image.ndim == 2 else None)
    if image.ndim != 2 or image.dtype != np.uint16:
        raise ValueError(f"a {kind} image; {_HOW_DEPTH}")
    if not cv2.hasNonZero(image):
        raise ValueError("a depth map without a single reading (all 0)")
    return Facts(size, image)


def summarise(depth: np.ndarray) -> tuple[float, float, bool]:
    """The median reading of a depth map in millimetres, the share of its readings that are 65535, in [0, 1], and
    whether all are multiples of 10; fewer than ten different readings do not tell.
    """
    if depth.dtype != np.uint16:
        return float(np.median(depth[depth > 0])), 0.0, False
    # Ten times faster than sorting the readings.
    counts = cv2.calcHist([depth], [0], None, [65536], [0, 65536]).ravel()[1:].astype(np.int64)
    up_to = counts.cumsum()
    total = up_to[-1]
    middle = np.searchsorted(up_to, [(total - 1) // 2, total // 2], side="right") + 1
    coarse = np.count_nonzero(counts[9::10]) >= 10 and counts[9::10].sum() == total
    return float(middle.mean()), float(counts[-1] / total), bool(coarse)


def _array(field: str, data: bytes) -> Facts:
    """Open a NumPy array, which for depth holds metres."""
    array = read_array(data)
    if field != "depth":
        return Facts()
    if array.ndim != 2 or array.dtype.kind != "f":
        raise ValueError(f"an array of {array.dtype} {list(array.shape)}; depth in .npy is metres, float [H, W]")
    read = np.isfinite(array) & (array > 0)
    if not read.any():
        raise ValueError("a depth map without a single reading")
    with np.errstate(over="ignore"):
        millimetres = 1000 * np.where(read, array, 0).astype(np.float32)  # 16 bit would end at 65.5 m
    if not np.isfinite(millimetres).all():
        raise ValueError("a depth map with readings that 32 bit do not hold; depth in .npy is metres")
    return Facts((array.shape[1], array.shape[0]), millimetres)


def _sound(suffix: str, data: bytes) -> None:
    """Hear a sound to its end; without the audio extra, believe its header."""
    if (kind := sound_kind(data)) != suffix:
        raise ValueError(f"a {kind} file that is called .{suffix}; give it its own name")
    if can_hear():
        read_sound(data, PLAYED)


@cache
def can_hear() -> bool:
    """Whether the audio extra is there, so that sound is decoded."""
    try:
        return bool(import_soundfile())
    except ImportError:
        return False
