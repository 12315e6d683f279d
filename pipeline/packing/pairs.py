"""Judges whether the images of one sample can show the same scene: EXIF orientation, and width to height."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pipeline.data.member_formats import Facts, field_of

SAME = 1.03
"""Aspect ratios within this factor are equal: sizes are whole pixels."""

CURE = "turn the map in the same way, or remove the orientation from the photo (exiftool -Orientation=), and pack again"


@dataclass(frozen=True)
class Pair:
    """Two images of a sample that do not belong together as they are.

    Attributes:
        reason: What is wrong and how to fix it.
        certain: Whether the sizes prove it; if not, the photo is turned by EXIF in a way that keeps the sizes.
    """

    reason: str
    certain: bool


def mismatched(facts: Mapping[str, Facts]) -> Pair | None:
    """Find the first photo and map (depth map or mask) of a sample that do not belong together.

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
    """Compare a photo, of that size after it was turned by EXIF, with a map, which is never turned."""
    alike, across = _alike(size, upright), _alike(size, upright[::-1])
    if across and not alike:
        turned = f"EXIF orientation {orientation} turns {photo} to {_text(upright)}, but {other} is {_text(size)}"
        plain = f"{photo} is {_text(upright)}, but {other} is {_text(size)}: one of them is turned by 90 degrees"
        return Pair(f"{turned}; {CURE}" if orientation >= 5 else f"{plain}; turn it back and pack again", certain=True)
    # A map of the size of a photo that was turned by 90 degrees was turned with it, unless both are square.
    if alike and orientation > 1 and (orientation < 5 or across):
        return Pair(
            f"EXIF orientation {orientation} turns {photo}, but nothing turns {other}; if it is as the sensor gave it, "
            f"{CURE}",
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
