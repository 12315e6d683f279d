"""Determines the size and completeness of an image from its header, without decoding it."""

from __future__ import annotations

import re
import struct

MOST_PIXELS = 100_000_000

MOST_SCANS = 50
"""Maximum number of scans in a JPEG. Encoders write about ten; thousands would take minutes to decode."""

MOST_TEXTS = 20
"""Maximum number of compressed texts in a PNG. Decoders unpack each of them, up to 8 MB."""

MOST_SEGMENTS = 10_000
"""Maximum number of segments before the first scan of a JPEG."""

FILL = re.compile(rb"\xff*")
"""Bytes that may precede a marker."""


def image_size(data: bytes) -> tuple[int, int]:
    """Read `(width, height)` from the header of a complete JPEG, PNG or WebP.

    Raises:
        ValueError: The file has another format, is truncated (decoders silently fill the rest with grey), or has more
            than `MOST_PIXELS` pixels (a few kilobytes can unpack to gigabytes), `MOST_SCANS` scans or `MOST_TEXTS`
            compressed texts.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        width, height = struct.unpack(">II", data[16:24]) if len(data) >= 24 else (0, 0)
        whole = data.rfind(b"IEND\xaeB`\x82") > 0  # search from the end, which is fast
        # Three bytes also occur by chance in the pixels of large files, but one search is faster than two.
        texts = data.count(b"zTXt") + data.count(b"iTXt") if data.count(b"TXt") > MOST_TEXTS else 0
        if texts > MOST_TEXTS:
            raise ValueError(f"the PNG has {texts} compressed texts; at most {MOST_TEXTS} are accepted: save it again")
    elif data.startswith(b"\xff\xd8"):
        (width, height), scan = _jpeg_header(data)
        whole = scan > 0 and data.rfind(b"\xff\xd9", scan) > 0
        if (scans := data.count(b"\xff\xda", scan)) > MOST_SCANS and scan > 0:
            raise ValueError(f"the JPEG has {scans} scans; at most {MOST_SCANS} are accepted: save it again")
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        width, height = _webp_size(data)
        whole = len(data) >= 8 + int.from_bytes(data[4:8], "little")
    else:
        raise ValueError(f"not a JPEG, PNG or WebP file (it begins with {data[:8]!r})")
    if not whole:
        raise ValueError(f"the image is truncated: its end is missing after {len(data)} bytes; copy it again")
    if not 0 < width * height <= MOST_PIXELS:
        raise ValueError(f"the image has {width} x {height} pixels; between 1 and {MOST_PIXELS} are accepted")
    return width, height


def stated_size(data: bytes) -> tuple[int, int]:
    """Width and height in the header of a JPEG, PNG or WebP; (0, 0) for other and damaged files."""
    if data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return width, height
    if data.startswith(b"\xff\xd8"):
        return _jpeg_header(data)[0]
    return _webp_size(data) if data.startswith(b"RIFF") and data[8:12] == b"WEBP" else (0, 0)


def _jpeg_header(data: bytes) -> tuple[tuple[int, int], int]:
    """Walk the segments to the first scan; return the size and the offset of the scan (0 if there is none).

    Searching the whole file for an end marker is not enough, since an embedded thumbnail also has one.
    """
    size = (0, 0)
    for at, marker in jpeg_segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and at + 9 <= len(data):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            size = (width, height)
        if marker == 0xDA:
            return size, at
    return size, 0


def jpeg_segments(data: bytes) -> list[tuple[int, int]]:
    """The segments of a JPEG up to its first scan: offset of the marker's first byte, and its second byte."""
    found: list[tuple[int, int]] = []
    at, last = 2, len(data) - 4
    while at <= last and data[at] == 0xFF and len(found) < MOST_SEGMENTS:
        marker = data[at + 1]
        if marker == 0xFF:
            at = FILL.match(data, at).end() - 1  # type: ignore[union-attr]
            continue
        found.append((at, marker))
        if marker == 0xDA:
            break
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return found


def _webp_size(data: bytes) -> tuple[int, int]:
    """Read the size from the first chunk of a WebP: lossy, lossless or extended."""
    kind, body = data[12:16], data[20:30].ljust(10, b"\0")
    if kind == b"VP8 ":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
