"""Decides by EXIF orientation and aspect ratio whether the images of one sample can show the same scene."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pipeline.data.member_formats import Facts, field_of

SAME = 1.03
"""Aspect ratios within this factor count as equal, since sizes are rounded to pixels."""

CURE = "rotate the map likewise, or remove the orientation from the photo (exiftool -Orientation=), and pack again"


@dataclass(frozen=True)
class Pair:
    """Two images of a sample that do not match as they are stored.

    Attributes:
        reason: What is wrong and how to fix it.
        certain: Whether the sizes prove it. Otherwise, EXIF rotates or mirrors the photo without a visible change in
            size.
    """

    reason: str
    certain: bool


def mismatched(facts: Mapping[str, Facts]) -> Pair | None:
    """Find the first photo and map (depth map or mask) of a sample that do not match.

    Args:
        facts: Member -> its properties.
    """
    found = sorted(_pairs(facts), key=lambda pair: not pair.certain)
    return found[0] if found else None


def _pairs(facts: Mapping[str, Facts]) -> Iterator[Pair]:
    maps = {member: size for member, fact in facts.items() if (size := fact.size) and _is_map(member, fact)}
    for member, fact in facts.items():
        if fact.size is None or member in maps:
            continue
        for other, size in maps.items():
            if (pair := _judge(member, fact.size, fact.orientation, other, size)) is not None:
                yield pair


def _judge(photo: str, upright: tuple[int, int], orientation: int, other: str, size: tuple[int, int]) -> Pair | None:
    """Compare a photo, whose size is that after EXIF rotation, with a map, which is never rotated."""
    alike, across = _alike(size, upright), _alike(size, upright[::-1])
    if across and not alike:
        turned = f"EXIF orientation {orientation} rotates {photo} to {_text(upright)}, but {other} is {_text(size)}"
        plain = f"{photo} is {_text(upright)}, but {other} is {_text(size)}: one of them is rotated by 90 degrees"
        return Pair(
            f"{turned}; {CURE}" if orientation >= 5 else f"{plain}; rotate it back and pack again", certain=True
        )
    # If a photo was rotated by 90 degrees and the map has its size, the map was rotated too, unless both are square.
    if alike and orientation > 1 and (orientation < 5 or across):
        return Pair(
            f"EXIF orientation {orientation} rotates {photo}, but not {other}; if {other} is as the sensor recorded "
            f"it, {CURE}",
            certain=False,
        )
    return None


def _is_map(member: str, fact: Facts) -> bool:
    return fact.depth is not None or (fact.mask is not None and field_of(member) != "rgb")


def _alike(one: tuple[int, int], other: tuple[int, int]) -> bool:
    ratio = one[0] * other[1] / (one[1] * other[0])
    return 1 / SAME <= ratio <= SAME


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
