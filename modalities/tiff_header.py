"""Size and completeness of a TIFF from its header, without decoding it."""

from __future__ import annotations

from modalities.image_header import MOST_PIXELS

BEGINS = (b"II*\0", b"MM\0*")

_SIZES = {1: 1, 3: 2, 4: 4}
"""Type of a value -> its bytes: unsigned numbers only, as the tags below have them."""

WIDTH, HEIGHT, PHOTOMETRIC, ORIENTATION = 256, 257, 262, 274
OFFSETS, LENGTHS = (273, 324), (279, 325)  # of strips, of tiles
USED = (WIDTH, HEIGHT, PHOTOMETRIC, ORIENTATION, *OFFSETS, *LENGTHS)
MOST_STRIPS = 100_000


def tiff_size(data: bytes) -> tuple[int, int]:
    """Read `(width, height)` from the header of a complete TIFF with one page.

    Raises:
        ValueError: The file is no TIFF or is truncated (decoders silently fill the rest), has several pages, is
            rotated, inverted or colour-coded by a tag, or has more than `MOST_PIXELS` pixels.
    """
    if not data.startswith(BEGINS):
        raise ValueError(f"not a TIFF file (it begins with {data[:8]!r})")
    try:
        tags, more = _tags(data, "little" if data[:2] == b"II" else "big")
    except IndexError:
        raise ValueError(
            f"the TIFF is truncated: a part of it is beyond its {len(data)} bytes; copy it again"
        ) from None
    (width,), (height,) = tags.get(WIDTH, [0]), tags.get(HEIGHT, [0])
    if not 0 < width * height <= MOST_PIXELS:
        raise ValueError(f"the image has {width} x {height} pixels; between 1 and {MOST_PIXELS} are accepted")
    ends = [
        start + length
        for at, size in zip(OFFSETS, LENGTHS, strict=True)
        for start, length in zip(tags.get(at, []), tags.get(size, []), strict=False)
    ]
    if not ends or max(ends) > len(data):
        raise ValueError(f"the TIFF is truncated: its pixels end beyond its {len(data)} bytes; copy it again")
    if more or tags.get(ORIENTATION, [1]) != [1] or tags.get(PHOTOMETRIC, [1]) != [1]:
        what = "has several pages" if more else "is rotated, inverted or colour-coded by its tags"
        raise ValueError(
            f"the TIFF {what}, which readers interpret differently; save a single upright page with 0 for missing depth"
        )
    return width, height


def _tags(data: bytes, order: str) -> tuple[dict[int, list[int]], bool]:
    """The numbers of the first page by tag in USED, and whether there are more pages. IndexError if it is cut."""

    def number(at: int, size: int) -> int:
        if at + size > len(data):
            raise IndexError
        return int.from_bytes(data[at : at + size], order)  # type: ignore[arg-type]

    at = number(4, 4)
    count = number(at, 2)
    tags: dict[int, list[int]] = {}
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, size, values = number(entry, 2), _SIZES.get(number(entry + 2, 2), 0), number(entry + 4, 4)
        if size:
            start = entry + 8 if size * values <= 4 else number(entry + 8, 4)
            if start + size * values > len(data):
                raise IndexError
            if tag in USED and tag not in tags:  # as readers do
                if values > MOST_STRIPS:
                    raise ValueError(f"the TIFF has {values} strips or tiles; at most {MOST_STRIPS} are accepted")
                tags[tag] = [number(start + size * place, size) for place in range(values)]
    return tags, number(at + 2 + 12 * count, 4) > 0
