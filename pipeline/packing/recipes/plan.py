"""The plan of a dataset: a recipe makes it, always the same for the same sources, and packing executes it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from modalities import depth_map
from pipeline.common.disk_errors import machine_fault
from pipeline.common.errors import UserError
from pipeline.common.file_names import nfc
from pipeline.common.spill import Spilled, blob, scratch

UNITS = {"depth": ("depth.png", "millimetres, 0 = no reading")}
"""Field -> member and unit, if the shard format defines it."""

INTRINSICS = ("fx", "fy", "cx", "cy", "width", "height")

_LONGEST_KEY = 64  # a name in a plain tar has up to 100 bytes, including the member


@dataclass(frozen=True)
class Refusal:
    """A rejected source.

    Attributes:
        key: Key of the sample.
        file: The file, member or row.
        reason: What is wrong.
    """

    key: str
    file: str
    reason: str


class Excluded(Exception):  # noqa: N818 - nothing is wrong with the sample
    """Raised by a plan's `make` for a sample that a user's filter excludes."""


Make = Callable[..., Mapping[str, bytes]]
"""A function from the `arguments` of a sample to its computed members. Worker processes must be able to import it.
"""


class SourceSample(NamedTuple):
    """A sample to pack. All values are valid JSON, so millions of samples can be stored on disk.

    Attributes:
        key: Unique key.
        group: Samples of a group stay in one split.
        size: Expected size in bytes.
        stamp: A text that changes when a source changes.
        files: Member -> path.
        texts: Member -> content.
        arguments: Arguments of the plan's `make`.
        label: Class index; None if unlabelled.
        labels: Other label name -> class index.
        split: The split; None if it is assigned by the fractions.
        source: Readable name, for `meta.json`.
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
        """Read the members, without label and meta unless they are computed.

        Args:
            make: The plan's `make`.

        Raises:
            OSError: A file is missing.
        """
        members = dict(make(*self.arguments)) if make else {}
        members |= {member: text.encode() for member, text in self.texts.items()}
        return members | {member: Path(path).read_bytes() for member, path in self.files.items()}


@dataclass
class Plan:
    """The result of a recipe: samples in a fixed order, and rejected sources.

    Attributes:
        recipe: Name of the recipe.
        name: Name of the dataset.
        options: The user's settings as JSON, which identify the packing in a folder.
        samples: The samples; use `spilled` if there may be many.
        refused: Rejected sources.
        make: Computes members.
        camera: Default entries of every `meta.json`.
        classes: See `pipeline.data.manifest.Dataset`, like all other fields.
    """

    recipe: str
    name: str
    options: dict[str, Any]
    samples: Sequence[SourceSample]
    refused: list[Refusal] = field(default_factory=list)
    classes: dict[str, list[str]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    licence: str = "not stated"
    split_rule: str | None = None
    masks: dict[str, list[int]] = field(default_factory=dict)
    source: str = ""
    make: Make | None = None
    camera: dict[str, Any] = field(default_factory=dict)


def spilled(samples: Iterable[SourceSample] = ()) -> Spilled[SourceSample]:
    """Store samples on disk, so memory does not grow with their number."""
    return Spilled(SourceSample, samples)


def sift(found: Iterable[SourceSample | Refusal]) -> tuple[Spilled[SourceSample], list[Refusal]]:
    """Separate samples from rejected sources."""
    samples, refused = spilled(), []
    for one in found:
        if isinstance(one, SourceSample):
            samples.append(one)
        else:
            refused.append(one)
    return samples, refused


def parse_fields(given: Iterable[str]) -> dict[str, str]:
    """Parse `["rgb=photos", "depth=maps"]` to `{"rgb": "photos", "depth": "maps"}`.

    Raises:
        UserError: An entry is invalid or repeated.
    """
    fields: dict[str, str] = {}
    for text in given:
        name, equals, source = text.partition("=")
        if not (name and equals and source):
            raise UserError(f"--field {text}: expected a field and its source, e.g. `--field rgb=photos`.")
        if name in fields:
            raise UserError(f"--field {text}: {name} is specified twice; remove one of them.")
        fields[name] = source
    return fields


def add_masks(plan: Plan, given: Iterable[str]) -> Plan:
    """Declare fields of a plan to be segmentation masks.

    Args:
        plan: The plan.
        given: For example `mask=background:0,hand:255`: the field, its classes and their pixel values. Without values,
            classes are numbered from 0.

    Raises:
        UserError: An entry is invalid.
    """
    for text in given:
        field, _, listed = text.partition("=")
        parts = [part.strip().partition(":") for part in listed.split(",")]
        numbers = [value if colon else str(place) for place, (_, colon, value) in enumerate(parts)]
        names = [name for name, _, _ in parts]
        fits = all(names) and all(re.fullmatch(r"\d{1,5}", number) and int(number) < 1 << 16 for number in numbers)
        if not fits or len(set(names)) < len(names) or len(set(numbers)) < len(numbers):
            raise UserError(
                f"--mask {text}: expected a field and its classes, with pixel values from 0 to 65535 if they are not "
                "numbered from 0: `--mask mask=background:0,hand:255`. Names and values must be unique."
            )
        if field not in plan.options.get("fields", {}) or field in plan.classes:
            raise UserError(
                f"--mask {text}: {field or 'it'} is not a field, or is already a label; add it with --field."
            )
        plan.classes[field], plan.masks[field] = names, list(map(int, numbers))
        plan.options = plan.options | {"masks": plan.masks}
    return plan


def add_camera(plan: Plan, intrinsics: str | None, gravity: str | None) -> Plan:
    """Set the depth camera of a plan.

    Args:
        plan: The plan.
        intrinsics: `fx,fy,cx,cy` in pixels, followed by `,width,height` if they belong to an image of another size
            than the depth maps.
        gravity: `x,y,z`.

    Raises:
        UserError: The values are invalid.
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
            f"{given}: invalid camera. Expected `--intrinsics fx,fy,cx,cy` or `--intrinsics fx,fy,cx,cy,width,height` "
            "in pixels with positive focal lengths, and `--gravity x,y,z`: x right, y down, z away from the camera."
        ) from None
    if plan.camera:
        plan.options = plan.options | {"camera": plan.camera}
    return plan


def safe_key(identity: str) -> str:
    """Make a key that is valid in all tar and WebDataset readers: letters, digits, `-` and `_`, up to 64 characters.

    If characters were replaced or removed, a digest makes the key unique. It is the same in all Unicode normal forms.

    Args:
        identity: Any text, e.g. a path.
    """
    identity = nfc(identity)
    path = identity.replace("/", "-")
    key = re.sub(r"[^A-Za-z0-9_-]", "_", path)
    if key != path or len(key) > _LONGEST_KEY:
        digest = hashlib.sha256(identity.encode(errors="backslashreplace")).hexdigest()[:16]
        key = f"{key[: _LONGEST_KEY - 17]}-{digest}"
    return key


def check_unique(samples: Sequence[SourceSample]) -> None:
    """Check that keys are unique.

    Raises:
        UserError: Two samples have the same key. The message contains both sources.
    """
    db = scratch("samples (number INTEGER PRIMARY KEY, key BLOB)")
    db.executemany("INSERT INTO samples VALUES (?, ?)", ((n, blob(sample.key)) for n, sample in enumerate(samples)))
    both = "SELECT FIRST_VALUE(number) OVER (PARTITION BY key ORDER BY number) AS first, number FROM samples"
    for pair in db.execute(f"SELECT * FROM ({both}) WHERE number > first ORDER BY number LIMIT 1"):
        one, other = (samples[number] for number in pair)
        raise UserError(
            f"`{one.source}` and `{other.source}` both have the key `{one.key}`: keys must be unique. Rename or remove "
            "one of them; for a manifest, set `--key` to a column with unique values."
        )


def stamp(files: Iterable[str]) -> tuple[int, str]:
    """Total size of files in bytes, and a digest of their sizes and times.

    Raises:
        OSError: A file is missing.
    """
    total, digest = 0, hashlib.sha256()
    for path in files:
        status = os.stat(path)  # noqa: PTH116 - for millions of files, creating Paths is slower than the call
        total += status.st_size
        digest.update(f"{status.st_size} {status.st_mtime_ns};".encode())
    return total, digest.hexdigest()[:16]


def refusal(key: str, where: str, error: Exception) -> Refusal:
    """Convert an exception to a `Refusal`. An OSError contains the file name; that of a missing file becomes absolute.

    Raises:
        UserError: The machine failed: no permission, too many open files.
    """
    if fault := machine_fault(error, where):
        raise fault from None
    if isinstance(error, OSError):
        if isinstance(error, FileNotFoundError):
            return Refusal(key, str(Path(error.filename).absolute()) if error.filename else where, "no such file")
        return Refusal(key, str(error.filename or where), str(error.strerror))
    return Refusal(key, where, str(error))
