"""Decodes the members of raw samples with their modalities; error messages contain shard and key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from modalities.base import Modality
from modalities.image_header import stated_size
from modalities.tiff_header import BEGINS, tiff_size
from pipeline.data.member_formats import LARGEST_META
from pipeline.data.shard_reader import Sample
from pipeline.data.skipped import SampleError, Skipped
from pipeline.data.views import View, ViewSpec, several

MAX_PIXELS = 25_000_000
"""Default of `data.max_pixels`. Decoding takes up to 12 bytes per pixel."""


def decode_view(sight: ViewSpec, raw: Sample) -> Any:
    """Decode the input of a network from a raw sample, without augmentation.

    Args:
        sight: The views of the network.
        raw: The raw sample.

    Returns:
        The input: one decoded view, or a tuple if the network has several.

    Raises:
        SampleError: A member is missing or cannot be decoded.
    """
    meta = meta_of(raw)
    seen = tuple(v.whole(decode_member(v.modality, raw, meta)) for v in several(sight))
    return seen[0] if isinstance(sight, View) else seen


def meta_of(raw: Sample) -> Mapping[str, Any]:
    """Parse the `meta.json` of a raw sample; `{}` if it has none.

    Raises:
        SampleError: It is not a JSON object, or too large.
    """
    data = raw.get("meta.json", b"{}")
    if len(data) > LARGEST_META:
        message = f"{place_of(raw)}: meta.json: has {len(data)} bytes; at most {LARGEST_META} are accepted."
        raise sample_error(raw, "meta.json", message)
    try:
        meta = json.loads(data)
    except (ValueError, RecursionError) as error:
        message = f"{place_of(raw)}: meta.json: not valid JSON ({error}); run `wcord check` on the dataset."
        raise sample_error(raw, "meta.json", message) from None
    if not isinstance(meta, dict):
        message = f"{place_of(raw)}: meta.json: expected an object, got {type(meta).__name__}."
        raise sample_error(raw, "meta.json", message)
    return meta


def member_of(modality: Modality, raw: Sample) -> str | None:
    """The member that a modality reads from a raw sample; None if the sample lacks the modality."""
    return next((field for field in modality.members if field in raw), None)


def decode_member(modality: Modality, raw: Sample, meta: Mapping[str, Any]) -> Any:
    """Decode the member of a modality.

    Args:
        modality: The modality.
        raw: The raw sample.
        meta: Its `meta.json`.

    Returns:
        The decoded value, as the modality returns it.

    Raises:
        SampleError: The member is missing or cannot be decoded.
    """
    member = member_of(modality, raw)
    if member is None:
        wanted = " or ".join(modality.members)
        message = (
            f"{place_of(raw)}: has no {wanted}, which the modality `{modality.name}` reads; it contains "
            f"{', '.join(sorted(k for k in raw if not k.startswith('__')))}. Run `wcord check` on the dataset."
        )
        raise sample_error(raw, f"no {modality.members[0].partition('.')[0]}", message, unpaired=True)
    try:
        return modality.decode(raw[member], meta)
    except ValueError as error:
        message = f"{place_of(raw)}: {member}: {error}. Run `wcord check` on the dataset."
        raise sample_error(raw, member, message) from None


def check_pixels(data: bytes, most: int = MAX_PIXELS) -> None:
    """Check the number of pixels in the header of an image, before it is decoded. Other files pass.

    A pixel of a PNG with 16-bit RGBA counts twice, since decoders need twice the memory for it.

    Args:
        data: The file.
        most: Maximum number of pixels, `data.max_pixels`.

    Raises:
        ValueError: The image has more.
    """
    width, height = stated_size(data)
    if data.startswith(BEGINS):
        with suppress(ValueError):  # its decoder reports what is wrong
            width, height = tiff_size(data)
    twice = data[:4] == b"\x89PNG" and data[24:26] == b"\x10\x06"  # 16-bit RGBA
    if width * height * (1 + twice) > most:
        counted = " of 8 bytes, which count twice" if twice else ""
        raise ValueError(
            f"{width} x {height} pixels{counted}, more than data.max_pixels: {most} allows. Raise it if each loader "
            "process has the memory (up to 12 bytes per pixel), or pack the data with smaller images"
        )


def check_members(raw: Sample, most: int = MAX_PIXELS) -> None:
    """Check the number of pixels of all images of a raw sample, before they are decoded.

    Args:
        raw: The raw sample.
        most: Maximum number of pixels, `data.max_pixels`.

    Raises:
        SampleError: An image has more.
    """
    for name, data in raw.items():
        try:
            if isinstance(data, bytes):
                check_pixels(data, most)
        except ValueError as error:  # noqa: PERF203
            raise sample_error(raw, name, f"{place_of(raw)}: {name}: {error}.") from None


def place_of(raw: Sample) -> str:
    """Shard and key of a raw sample, as text for messages."""
    return f"{raw['__url__']}: sample {raw['__key__']}"


def sample_error(raw: Sample, cause: str, message: str, unpaired: bool = False, filtered: bool = False) -> SampleError:
    """Create the error for a sample that cannot be used.

    Args:
        raw: The raw sample.
        cause: Short name of the cause; samples are counted by cause.
        message: The error message.
        unpaired: Whether the sample is valid except that it lacks a modality.
        filtered: Whether a user-defined stage dropped the sample.
    """
    shard = raw.get("__shard__") or Path(raw["__url__"]).name
    return SampleError(Skipped(shard, raw["__place__"], raw["__key__"], cause, message, unpaired, filtered))
