"""Decodes the palette indices of a PNG, which are the classes of a mask as PASCAL VOC has them."""

from __future__ import annotations

import zlib

import cv2
import numpy as np

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SCALE = {1: 255, 2: 85, 4: 17, 8: 1}
"""Bits of an index -> factor by which decoders widen grey of so many bits to 8."""


def palette_indices(data: bytes) -> np.ndarray | None:
    """Decode the indices of a PNG with a palette, of which decoders only give the colours.

    Args:
        data: The bytes of an image.

    Returns:
        uint8 `[H, W]`; None if it is no PNG with a palette, or does not decode.
    """
    if not data.startswith(_SIGNATURE) or data[25:26] != b"\x03" or data[24] not in _SCALE:
        return None
    header = data[12:29]
    if data[29:33] != zlib.crc32(header).to_bytes(4, "big"):
        return None
    grey = header[:13] + b"\0" + header[14:]  # the same image as grey: without its palette
    parts = [_SIGNATURE, data[8:12], grey, zlib.crc32(grey).to_bytes(4, "big")]
    at = 33
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] in (b"IDAT", b"IEND"):
            parts.append(data[at:end])
        at = end
    try:
        image = cv2.imdecode(np.frombuffer(b"".join(parts), np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if image is None or image.ndim != 2:
        return None
    indices: np.ndarray = image // _SCALE[data[24]]
    return indices
