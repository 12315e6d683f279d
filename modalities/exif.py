"""The EXIF orientation of a JPEG: how viewers and the photo decoder rotate and mirror its pixels."""

from __future__ import annotations

import struct

from modalities.image_header import jpeg_segments

ORIENTATION = 0x0112


def orientation(data: bytes) -> int:
    """Read the EXIF orientation of a JPEG.

    Args:
        data: The bytes of an image file.

    Returns:
        1 to 8; 1 (as stored) for other files and without EXIF. 2 to 4 mirror the photo or rotate it by 180 degrees; 5
        to 8 swap width and height.
    """
    for at, marker in jpeg_segments(data) if data.startswith(b"\xff\xd8") else ():
        if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            return _of_tiff(data[at + 10 : at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")])
    return 1


def _of_tiff(tiff: bytes) -> int:
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (first,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, first)
        for entry in range(count):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, first + 2 + 12 * entry)
            if tag == ORIENTATION:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
