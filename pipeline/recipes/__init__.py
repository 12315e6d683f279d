"""Recipes say what a data set is made of; packing does the work. Each makes the same `Plan` from the same sources."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from modalities import depth_map
from pipeline.errors import UserError
from pipeline.scratch import Spilled, blob, scratch

UNITS = {"depth": ("depth.png", "millimetres, 0 = no reading")}
"""Field -> member and unit, where the shard format fixes one."""

INTRINSICS = ("fx", "fy", "cx", "cy", "width", "height")

_LONGEST_KEY = 64  # a name in a plain tar has 100 bytes, and the member stands behind the key


@dataclass(frozen=True)
class Refusal:
    """A source that was not packed: the sample's key, the file (or member, or row), and why."""

    key: str
    file: str
    reason: str


Make = Callable[..., Mapping[str, bytes]]
"""Builds members that are computed, not read, of a sample's `arguments`; worker processes import it."""


class Sample(NamedTuple):
    """One sample before it is packed: nothing but what JSON can hold, so that millions of them can lie on disk.

    files: member -> path. texts: member -> content. arguments: of the plan's `make`, if it has one.
    size: expected bytes. stamp: changes when a source changes. label: class index, None if unlabelled.
    labels: other label name -> class index. split: None leaves it to the fractions. source: for people, in `meta.json`.
    """

    key: str
    group: str
    size: int
    stamp: str
    files: Mapping[str, str] = {}
    texts: Mapping[str, str] = {}
    arguments: Sequence[str | int] = ()
    label: int | None = None
    labels: Mapping[str, int] = {}
    split: str | None = None
    source: str = ""

    def read(self, make: Make | None = None) -> dict[str, bytes]:
        """The members' bytes, without label and meta unless they are computed. Raises OSError for a lost file."""
        members = dict(make(*self.arguments)) if make else {}
        members |= {member: text.encode() for member, text in self.texts.items()}
        return members | {member: Path(path).read_bytes() for member, path in self.files.items()}


@dataclass
class Plan:
    """What a recipe found: samples in a fixed order, and what it had to refuse already.

    samples: `spilled`, where they may be many. options: what the user asked for, as JSON; another packing in the same
    folder is told by it. camera: what stands in every `meta.json` that does not say otherwise.
    The other fields go into `dataset.json` as they are (see `pipeline.shards.Dataset`).
    """

    recipe: str
    name: str
    options: dict[str, Any]
    samples: Sequence[Sample]
    refused: list[Refusal] = field(default_factory=list)
    classes: dict[str, list[str]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    licence: str = "not stated"
    split_rule: str | None = None
    masks: dict[str, list[int]] = field(default_factory=dict)
    make: Make | None = None
    camera: dict[str, Any] = field(default_factory=dict)


def spilled(samples: Iterable[Sample] = ()) -> Spilled[Sample]:
    """Samples on disk, of which any number takes no memory."""
    return Spilled(Sample, samples)


def sift(found: Iterable[Sample | Refusal]) -> tuple[Spilled[Sample], list[Refusal]]:
    """What can be packed, and what cannot."""
    samples, refused = spilled(), []
    for one in found:
        if isinstance(one, Sample):
            samples.append(one)
        else:
            refused.append(one)
    return samples, refused


def parse_fields(given: Iterable[str]) -> dict[str, str]:
    """`["rgb=photos", "depth=maps"]` -> `{"rgb": "photos", "depth": "maps"}`; UserError for anything else."""
    fields: dict[str, str] = {}
    for text in given:
        name, equals, source = text.partition("=")
        if not (name and equals and source):
            raise UserError(f"--field {text}: a field and its source are wanted, e.g. `--field rgb=photos`.")
        if name in fields:
            raise UserError(f"--field {text}: {name} is given twice; a sample has one {name}.")
        fields[name] = source
    return fields


def add_masks(plan: Plan, given: Iterable[str]) -> Plan:
    """Make fields of a plan masks: `mask=background:0,hand:255` is the field, its classes and their pixel values.

    Without values classes count from 0. Raises UserError for anything else.
    """
    for text in given:
        field, _, listed = text.partition("=")
        parts = [part.strip().partition(":") for part in listed.split(",")]
        numbers = [value if colon else str(place) for place, (_, colon, value) in enumerate(parts)]
        names = [name for name, _, _ in parts]
        fits = all(names) and all(re.fullmatch(r"\d{1,5}", number) and int(number) < 1 << 16 for number in numbers)
        if not fits or len(set(names)) < len(names) or len(set(numbers)) < len(numbers):
            raise UserError(
                f"--mask {text}: a field and its classes are wanted, with pixel values from 0 to 65535 where they do "
                "not count from 0: `--mask mask=background:0,hand:255`. Names and values differ."
            )
        if field not in plan.options.get("fields", {}) or field in plan.classes:
            raise UserError(f"--mask {text}: {field or 'it'} is no field, or a label already; give it with --field.")
        plan.classes[field], plan.masks[field] = names, list(map(int, numbers))
        plan.options = plan.options | {"masks": plan.masks}
    return plan


def add_camera(plan: Plan, intrinsics: str | None, gravity: str | None) -> Plan:
    """Say what a plan's depth camera is: `fx,fy,cx,cy` in pixels, then `,width,height` where they are of an image of
    another size than the depth maps; and gravity `x,y,z`. Raises UserError for anything else.
    """
    try:
        if intrinsics is not None:
            names = INTRINSICS if intrinsics.count(",") > 3 else INTRINSICS[:4]
            plan.camera["intrinsics"] = dict(zip(names, map(float, intrinsics.split(",")), strict=True))
            depth_map.intrinsics(plan.camera, 1, 1)
        if gravity is not None:
            plan.camera["gravity"] = list(map(float, gravity.split(",")))
            depth_map.gravity(plan.camera)
    except ValueError:
        given = " and ".join(text for text in (intrinsics, gravity) if text is not None)
        raise UserError(
            f"{given}: no camera. Wanted are `--intrinsics fx,fy,cx,cy` or `--intrinsics fx,fy,cx,cy,width,height` in "
            "pixels, focal lengths positive, and `--gravity x,y,z`: x right, y down, z away from the camera."
        ) from None
    if plan.camera:
        plan.options = plan.options | {"camera": plan.camera}
    return plan


def safe_key(identity: str) -> str:
    """A key that any tar and any WebDataset reader takes: letters, digits, `-` and `_`, no dot, at most 64 long.

    Where a character had to be replaced, or the rest cut off, a digest of the identity tells it from others alike.
    """
    path = identity.replace("/", "-")
    key = re.sub(r"[^A-Za-z0-9_-]", "_", path)
    if key != path or len(key) > _LONGEST_KEY:
        digest = hashlib.sha256(identity.encode(errors="backslashreplace")).hexdigest()[:16]
        key = f"{key[: _LONGEST_KEY - 17]}-{digest}"
    return key


def check_unique(samples: Sequence[Sample]) -> None:
    """Raise UserError if two samples have one key, naming both sources."""
    db = scratch("samples (number INTEGER PRIMARY KEY, key BLOB)")
    db.executemany("INSERT INTO samples VALUES (?, ?)", ((n, blob(sample.key)) for n, sample in enumerate(samples)))
    both = "SELECT FIRST_VALUE(number) OVER (PARTITION BY key ORDER BY number) AS first, number FROM samples"
    for pair in db.execute(f"SELECT * FROM ({both}) WHERE number > first ORDER BY number LIMIT 1"):
        one, other = (samples[number] for number in pair)
        raise UserError(
            f"`{one.source}` and `{other.source}` both get the key `{one.key}`: keys must differ. Rename or remove one "
            "of the two; of a manifest, `--key` can name a column that tells them apart."
        )


def stamp(files: Iterable[str]) -> tuple[int, str]:
    """The bytes of files together, and a digest of their sizes and times. Raises OSError if one is missing."""
    total, digest = 0, hashlib.sha256()
    for path in files:
        status = os.stat(path)  # noqa: PTH116 - a Path for each of millions of files takes longer than the call
        total += status.st_size
        digest.update(f"{status.st_size} {status.st_mtime_ns};".encode())
    return total, digest.hexdigest()[:16]


def refusal(key: str, where: str, error: Exception) -> Refusal:
    """The refusal for an error that a source raised; an OSError names its own file."""
    if isinstance(error, OSError):
        lost = isinstance(error, FileNotFoundError)
        return Refusal(key, str(error.filename or where), "there is no such file" if lost else str(error.strerror))
    return Refusal(key, where, str(error))


def number_classes(values: Iterable[str]) -> list[str]:
    """Class names in order: the distinct values sorted, as numbers where all of them are whole numbers."""
    names = set(values)
    if all(name.isdecimal() and len(name) < 10 for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)
