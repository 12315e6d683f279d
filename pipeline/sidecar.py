"""Cached teacher features: side-car shards `SHARD.NAME.tar` beside the shards, and the manifest that describes them.

One member a sample and view, `KEY.VIEW.safetensors`: `pooled [D]`, `logits [K]`, `map0 [C, H, W]` … and `geometry [5]`,
float64: left, top, right, bottom, flip of the view that the teacher saw, which the student's modalities replay.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from losses import Dims, Features
from modalities.base import Geometry
from pipeline.errors import UserError
from pipeline.remote import origin, refresh
from pipeline.shards import Shard

CORNERS = "geometry"


class Fingerprint(BaseModel):
    """What a cache must agree on with the run that uses it.

    weights: hash of the teacher's. sight: its modalities, encoders and preprocessing with their settings, as JSON.
    draw: what views are drawn from: seed, range of the crop or the shift, flip. shards: file -> sha256. joined: a hash
    of each data set that completes the samples.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    weights: str
    sight: str
    draw: str
    shards: dict[str, str]
    joined: list[str]


class Cache(BaseModel):
    """The content of `NAME.cache.json`: side-cars by the shard that they stand beside, and what is in them.

    faulty: by shard, the samples that could not be read, where there are any; samples that lack what the teacher sees
    are none of them. precision: what the teacher computed in; dtype is what its features are stored in.
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
        """Raises UserError if more of the split's samples could not be read than `most`, a share."""
        if (count := sum(self.faulty.values())) > most * samples:
            raise UserError(
                f"{self.name}: {count} of {samples} samples could not be read when the teacher's features were cached, "
                f"more than data.max_faulty: {most} allows; `wcord check` names them."
            )


def manifest_path(folder: Path, name: str) -> Path:
    """Where the cache of that name is described."""
    return folder / f"{name}.cache.json"


def sidecar_name(shard: str, name: str) -> str:
    """The shard of features beside a shard of data."""
    return f"{shard.removesuffix('.tar')}.{name}.tar"


def member(view: int) -> str:
    """The member with the features of a view."""
    return f"{view}.safetensors"


def open_cache(folder: Path, name: str, wanted: Fingerprint) -> Cache:
    """Read the manifest of a cache; UserError if there is none, or if it is of another teacher, draw or data."""
    path = manifest_path(folder, name)
    try:
        if origin(folder) is not None:
            # Then it was made here; a store that may not be listed calls what is not there forbidden.
            with suppress(FileNotFoundError, PermissionError):
                refresh(folder, path.name)
        cache = Cache.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: not found. Run `wcord cache` with the same config first.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{path}: {where}: {first['msg']}. Run `wcord cache` again.") from None
    differing = differences(cache.fingerprint, wanted)
    if differing:
        raise UserError(f"{path}: made for another run: {'; '.join(differing)}. Run `wcord cache` with this config.")
    return cache


def differences(there: Fingerprint, here: Fingerprint) -> list[str]:
    """What differs between two fingerprints, in words."""
    found = [
        f"{what}: {getattr(there, name)} there, {getattr(here, name)} here"
        for name, what in (
            ("weights", "the teacher's weights"),
            ("sight", "what the teacher sees"),
            ("draw", "views"),
            ("joined", "data.join"),
        )
        if getattr(there, name) != getattr(here, name)
    ]
    changed = [file for file, digest in here.shards.items() if there.shards.get(file) != digest]
    return [*found, *([f"{len(changed)} shards, the first {changed[0]}"] if changed else [])]


def encode(features: Mapping[str, Tensor], geometry: Geometry) -> bytes:
    """The member of one sample and view."""
    corners = torch.tensor(
        [geometry.left, geometry.top, geometry.right, geometry.bottom, float(geometry.flip)], dtype=torch.float64
    )
    return save({name: value.contiguous() for name, value in features.items()} | {CORNERS: corners})


def decode(data: bytes) -> tuple[dict[str, Tensor], Geometry]:
    """What `encode` wrote; ValueError for anything else."""
    try:
        features = load(data)
        left, top, right, bottom, flip = features.pop(CORNERS).tolist()
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"not a teacher's cached view: {error}") from None
    return features, Geometry(left, top, right, bottom, bool(flip))


class CachedTeacher(nn.Module):
    """Stands for a teacher whose features come with the batch."""

    def __init__(self, cache: Cache) -> None:
        super().__init__()
        self.cache, self.classes = cache, cache.classes

    @property
    def dims(self) -> Dims:
        """The sizes of the cached `Features`."""
        classes = len(self.classes) if self.classes else None
        return Dims(self.cache.pooled, tuple(self.cache.maps), classes, self.cache.dense)

    def forward(self, x: Mapping[str, Any]) -> Features:
        """x: `pooled [B, D]`, `logits [B, K]`, `map0 [B, C, H, W]` …, in the cache's dtype."""
        return Features(x["pooled"], [x[f"map{i}"] for i in range(len(self.cache.maps))], x.get("logits"))
