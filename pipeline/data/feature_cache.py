"""Cached teacher features: a cached-feature shard `SHARD.NAME.tar` for each shard, and the manifest of the cache.

One member per sample and view, `KEY.VIEW.safetensors`: `pooled [D]`, `logits [K]`, `map0 [C, H, W]` … and `geometry
[5]`, float64: left, top, right, bottom, flip of the view that the teacher received. The student's view repeats it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from modalities.base import Geometry
from pipeline.common.errors import UserError
from pipeline.data.dataset import Shard
from pipeline.data.remote import origin, refresh

CORNERS = "geometry"


class Fingerprint(BaseModel):
    """Properties that must be the same in a cache and in a run that uses it.

    Attributes:
        weights: Hash of the teacher's weights.
        sight: The teacher's modalities, encoders and preprocessing with their settings, as JSON.
        draw: The augmentation as text: seed, crop or shift, flip.
        shards: File name of each shard -> its `content`, e.g. its SHA-256.
        joined: Hash of each joined dataset.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    weights: str
    sight: str
    draw: str
    shards: dict[str, str]
    joined: list[str]


class Cache(BaseModel):
    """The manifest of a cache, `NAME.cache.json`.

    Attributes:
        version: Version of the format.
        name: Name of the cache.
        fingerprint: Teacher, augmentation and data.
        views: Number of views per sample.
        dtype: Number format of the stored features.
        precision: Number format in which the teacher was run.
        pooled: Dimension of the pooled features.
        maps: Number of channels of each feature map.
        classes: Class names of the teacher's logits; None if it has no logits.
        dense: Whether the logits are per pixel.
        licence: Licence of the teacher's weights.
        sidecars: File name of each shard -> its cached-feature shard.
        faulty: File name of a shard -> number of its samples that could not be read; only shards with at least one.
            Samples that lack the teacher's modality do not count.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    version: int = 1
    name: str
    fingerprint: Fingerprint
    views: int
    dtype: str
    precision: str = "fp32"
    pooled: int
    maps: list[int]
    classes: list[str] | None
    dense: bool = False
    licence: str
    sidecars: dict[str, Shard]
    faulty: dict[str, int] = {}

    def check_faulty(self, samples: int, most: float) -> None:
        """Check the fraction of samples that could not be read.

        Args:
            samples: Number of samples of the split.
            most: Maximum fraction, `data.max_faulty`.

        Raises:
            UserError: The fraction is larger.
        """
        if (count := sum(self.faulty.values())) > most * samples:
            raise UserError(
                f"{self.name}: {count} of {samples} samples could not be read when the teacher's features were cached, "
                f"more than data.max_faulty: {most} allows. Run `wcord check` to list them."
            )


def manifest_path(folder: Path, name: str) -> Path:
    """Path of the manifest of a cache.

    Args:
        folder: Local folder of the dataset.
        name: Name of the cache.
    """
    return folder / f"{name}.cache.json"


def sidecar_name(shard: str, name: str) -> str:
    """File name of a cached-feature shard.

    Args:
        shard: File name of the shard.
        name: Name of the cache.
    """
    return f"{shard.removesuffix('.tar')}.{name}.tar"


def member(view: int) -> str:
    """The member that contains the features of a view."""
    return f"{view}.safetensors"


def open_cache(folder: Path, name: str, wanted: Fingerprint) -> Cache:
    """Read the manifest of a cache and compare it with the run.

    Args:
        folder: Local folder of the dataset.
        name: Name of the cache.
        wanted: Fingerprint of the run.

    Raises:
        UserError: There is no such cache, or it was made with another teacher, augmentation or data.
    """
    path = manifest_path(folder, name)
    try:
        if origin(folder) is not None:
            # Not found: the cache was created locally. Without permission to list, a store answers "forbidden" instead.
            with suppress(FileNotFoundError, PermissionError):
                refresh(folder, path.name)
        cache = Cache.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"{path}: not found. Run `wcord cache` with the same config first, or set teacher.cache=auto to fill a "
            "cache during training."
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{path}: {where}: {first['msg']}. Run `wcord cache` again.") from None
    differing = differences(cache.fingerprint, wanted)
    if differing:
        raise UserError(
            f"{path}: was made for another run: {'; '.join(differing)}. Run `wcord cache` with this config."
        )
    return cache


def differences(there: Fingerprint, here: Fingerprint) -> list[str]:
    """Describe the differences of two fingerprints.

    Args:
        there: Fingerprint of the cache.
        here: Fingerprint of the run.
    """
    found = [
        f"{what}: {getattr(there, name)} in the cache, {getattr(here, name)} in this run"
        for name, what in (
            ("weights", "the teacher's weights"),
            ("sight", "the teacher's input"),
            ("draw", "augmentation"),
            ("joined", "data.join"),
        )
        if getattr(there, name) != getattr(here, name)
    ]
    changed = [file for file, digest in here.shards.items() if there.shards.get(file) != digest]
    return [*found, *([f"{len(changed)} shards, the first {changed[0]}"] if changed else [])]


def encode(features: Mapping[str, Tensor], geometry: Geometry) -> bytes:
    """Encode the features of one sample and view.

    Args:
        features: Name -> tensor.
        geometry: Geometry of the view.

    Returns:
        Bytes of the member.
    """
    corners = torch.tensor(
        [geometry.left, geometry.top, geometry.right, geometry.bottom, float(geometry.flip)], dtype=torch.float64
    )
    return save({name: value.contiguous() for name, value in features.items()} | {CORNERS: corners})


def decode(data: bytes) -> tuple[dict[str, Tensor], Geometry]:
    """Decode what `encode` wrote.

    Args:
        data: Bytes of the member.

    Returns:
        Features, name -> tensor; and the geometry of the view.

    Raises:
        ValueError: The bytes are invalid.
    """
    try:
        features = load(data)
        left, top, right, bottom, flip = features.pop(CORNERS).tolist()
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"invalid cached features: {error}") from None
    return features, Geometry(left, top, right, bottom, bool(flip))
