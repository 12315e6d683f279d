"""Makes the members to pack from a sample in foreign shards: read, join, filter, select, resize."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePath
from typing import Any

import cv2
import numpy as np

from modalities.image_header import image_size
from pipeline.common.errors import UserError
from pipeline.data.join import joined_meta
from pipeline.data.member_formats import field_of, member_name
from pipeline.data.skipped import SampleError
from pipeline.data.user_stages import UserStage
from pipeline.packing.recipes.plan import Excluded
from pipeline.packing.recipes.shard_rows import read_piece

QUALITY = 95
"""JPEG quality of resized photos."""


@dataclass(frozen=True)
class Naming:
    """How the members of foreign shards are named here.

    Attributes:
        names: Extension -> member, for members that are renamed.
        keeps_meta: Whether `meta.json` has our format; in other datasets, it may contain anything.
    """

    names: Mapping[str, str]
    keeps_meta: bool

    def read(self, url: str, start: int, stop: int, key: str) -> dict[str, bytes]:
        """Read the members of a sample; see `read_piece`."""
        members: dict[str, bytes] = {}
        for extension, data in read_piece(url, start, stop, key).items():
            name = self.names.get(extension, extension)
            if name != "meta.json" or self.keeps_meta:
                members.setdefault(name, data)
        return members


@dataclass(frozen=True)
class ShardMembers:
    """Makes the members of a sample from its position in a shard; the `make` of a plan.

    Attributes:
        own: Names of the members of the shards.
        joined: Names of the members of the joined shards.
        fields: The fields to pack; None means all.
        preferred: Members in order of preference, for samples that have several members for one field.
        size: Short side in pixels to which larger photos are downscaled; None keeps all photos unchanged.
        filters: User-defined stages, each `package.module:name`.
    """

    own: Naming
    joined: Naming | None = None
    fields: frozenset[str] | None = None
    preferred: tuple[str, ...] = ()
    size: int | None = None
    filters: tuple[str, ...] = ()

    def __call__(self, key: str, url: str, place: int, start: int, stop: int, *other: str | int) -> Mapping[str, bytes]:
        """Make the members.

        Args:
            key: Key of the sample in the shards.
            url: Path or URL of its shard.
            place: Index of the sample in the shard, starting at 0.
            start: First byte of the sample in the shard.
            stop: Last byte plus 1.
            other: `url, start, stop, key` of the joined sample.

        Raises:
            Excluded: A filter excludes the sample.
            OSError: A shard cannot be read.
            ValueError: The sample has no fields, or a shard has changed.
            UserError: A filter fails.
        """
        sample = self.own.read(url, start, stop, key)
        if other and self.joined:
            other_url, other_start, other_stop, other_key = other
            found = self.joined.read(str(other_url), int(other_start), int(other_stop), str(other_key))
            sample = _join(sample, found)
        for path in self.filters:
            sample = _filter(path, key, url, place, sample)
        members = self._choose(sample)
        if not any(member != "meta.json" for member in members):
            raise ValueError(f"none of its members is a field: {', '.join(sorted(sample)) or 'it has no members'}")
        if self.size is not None:
            members = dict(resize(member, data, self.size) for member, data in members.items())
        return members

    def _choose(self, sample: Mapping[str, bytes]) -> dict[str, bytes]:
        """One member for each field to pack."""
        members: dict[str, bytes] = {}
        taken: set[str] = set()
        for name in [*(name for name in self.preferred if name in sample), *sample]:
            field = field_of(name)
            wanted = self.fields is None or field in self.fields or name == "meta.json"
            if wanted and field not in taken and is_field(name):
                taken.add(field)
                members[name] = sample[name]
        return members


def is_field(member: str) -> bool:
    """Whether a member can be packed: `rgb.jpg`, but not `json`, a label, or a pickle."""
    try:
        return "." in member and member_name(field_of(member), member) == member
    except ValueError:
        return False


def resize(member: str, data: bytes, size: int) -> tuple[str, bytes]:
    """Downscale a larger photo to a JPEG with a short side of `size` pixels; return anything else unchanged.

    Args:
        member: Its name, such as `rgb.png`.
        data: Its content.
        size: Length of the short side in pixels.

    Returns:
        Name and content.
    """
    if field_of(member) != "rgb":
        return member, data
    try:
        if min(image_size(data)) <= size:
            return member, data
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except (ValueError, cv2.error):
        image = None
    if image is None:  # `inspect` rejects it later, with the reason
        return member, data
    height, width = image.shape[:2]
    scale = size / min(height, width)
    shape = max(round(width * scale), 1), max(round(height * scale), 1)
    small = cv2.resize(image, shape, interpolation=cv2.INTER_AREA)
    return "rgb.jpg", cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def _join(sample: dict[str, bytes], found: dict[str, bytes]) -> dict[str, bytes]:
    """The sample, completed with the fields of another sample."""
    own = set(map(field_of, sample))
    new = {name: data for name, data in found.items() if field_of(name) not in own and is_field(name)}
    return new | sample | joined_meta(found, sample)


def _filter(path: str, key: str, url: str, place: int, sample: dict[str, bytes]) -> dict[str, bytes]:
    raw: dict[str, Any] = {"__key__": key, "__url__": url, "__shard__": PurePath(url).name, "__place__": place}
    try:
        found = _stage(path)(raw | sample)
    except SampleError as error:
        raise Excluded(error.skipped.cause) from None
    members = {name: value for name, value in found.items() if not name.startswith("__")}
    if other := next((name for name, value in members.items() if not isinstance(value, bytes)), None):
        raise UserError(
            f"--filter: {path} must return every member as bytes; {other} is {type(members[other]).__name__}."
        )
    return members


@lru_cache
def _stage(path: str) -> UserStage:
    return UserStage(path, "--filter")
