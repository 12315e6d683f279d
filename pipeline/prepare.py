"""Raw members of a sample to what every network sees of it, under one geometry; and samples to batches."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from modalities.base import Caption, Geometry, Modality
from pipeline.draw import Draw, digest
from pipeline.errors import UserError
from pipeline.masks import read_mask, target
from pipeline.samples import CURE, Sample, read_range
from pipeline.sidecar import decode
from pipeline.skipped import SampleError, Skipped
from pipeline.source import Source

Batch = dict[str, Any]
"""Role -> what its modality's `collate` made of B samples; `label`, `group` and `index`, int64 `[B]`, -1 where unknown;
`key`, a list of B; `mask [B, H, W]` where the task is one; and `skipped`, the samples that were passed over."""


@dataclass(frozen=True)
class View:
    """What one network sees of a sample: a modality at the input size of its encoder."""

    modality: Modality
    size: int


Sight = View | tuple[View, ...]
"""What a network sees: one view, or several that it joins."""


class Prepare:
    """Raw members of one sample to tensors: decode, one geometry for all views, photometrics per modality."""

    def __init__(self, source: Source, views: Mapping[str, Sight], draw: Draw | None) -> None:
        self.source, self.draw, self.first = source, draw, source.first()
        self.views = dict(views)
        self.members = frozenset(member for sight in self.views.values() for member in members_of(sight))
        # A mask is read at the size that the student answers in.
        student = next(iter(several(self.views["student"]))) if source.mask and "student" in self.views else None
        self.mask_size = student and student.size
        if source.mask and student:
            self.members |= {source.mask}
        # Views of the same modality share the decoding, and the tensor as well where the size is the same.
        self.modalities: list[Modality] = []
        self.slots = {role: [self._slot(view) for view in several(sight)] for role, sight in self.views.items()}
        # Samples may lack what only the teacher would see, where the config keeps them.
        needed = {number for number, _ in self.slots.get("student", [])}
        self.cached = draw is not None and source.cache is not None
        keep = draw is not None and "student" in self.slots and source.policy.unpaired == "keep"
        self.optional = set(range(len(self.modalities))) - needed if keep else set()
        self.keeps = bool(self.optional) or (keep and self.cached)
        self.filler: dict[str, Any] = {}

    def _slot(self, view: View) -> tuple[int, int]:
        """Which of the modalities it decodes by, and its size."""
        for number, known in enumerate(self.modalities):
            if _same_modality(known, view.modality):
                return number, view.size
        self.modalities.append(view.modality)
        return len(self.modalities) - 1, view.size

    def __call__(self, raw: Sample, epoch: int) -> Sample:
        """Raises SampleError for a sample that cannot be used."""
        if "__lost__" in raw:
            raise _error(raw, "shard", f"{raw['__url__']}: {raw['__lost__']}. {CURE}")
        raw = complete(self.source, raw, self.members)
        meta = _meta(raw)
        decoded = [
            None if number in self.optional and _member(modality, raw) is None else _decode(modality, raw, meta)
            for number, modality in enumerate(self.modalities)
        ]
        seed = digest(raw["__key__"])
        geometry = Geometry()
        features = None
        if self.cached and ("__beside__" in raw or not self.keeps):
            features, geometry = self._features(raw)
        elif self.draw is not None:
            geometry = self.draw.geometry(epoch, seed)

        index = self.first[raw["__url__"]] + raw["__place__"]  # in the split, however it is shuffled
        sample: Sample = {"key": raw["__key__"], "index": index, "geometry": geometry, **self._task(raw, meta)}
        if self.cached:
            sample["teacher"] = features
        if self.mask_size:
            sample["mask"] = target(self._mask(raw), geometry, self.mask_size)
        tensors: dict[tuple[int, int], torch.Tensor | None] = {}
        for number, size in sorted({slot for slots in self.slots.values() for slot in slots}):
            # The same numbers for every view of a modality, whoever else looks on: the same colours at any size.
            modality, draw, value = self.modalities[number], self.draw, decoded[number]
            rng_view = np.random.default_rng([draw.seed, epoch, seed, digest(modality.name)]) if draw else None
            tensors[number, size] = None if value is None else modality.augment(value, geometry, size, rng_view)
        for role, slots in self.slots.items():
            seen = tuple(tensors[slot] for slot in slots)
            whole = seen[0] if isinstance(self.views[role], View) else seen
            sample[role] = None if any(part is None for part in seen) else whole
        return sample

    def _features(self, raw: Sample) -> tuple[dict[str, torch.Tensor], Geometry]:
        """The teacher's cached features of the view that is this epoch's turn, and its geometry."""
        if "__beside__" not in raw:
            # Whether it lacked the teacher's view or could not be read is told where the cache was made.
            message = f"{_where(raw)}: the cache has no features of it; it could not be used then."
            raise _error(raw, "not cached", message, unpaired=self.source.policy.unpaired != "error")
        try:
            return decode(raw["__beside__"])
        except ValueError as error:
            raise _error(raw, "not cached", f"{_where(raw)}: {error}; run `wcord cache` again.") from None

    def _task(self, raw: Sample, meta: Mapping[str, Any]) -> Sample:
        source = self.source
        group = meta.get("group")
        number = -1 if group is None else digest(str(group)) >> 1
        if source.classes == 0 or source.mask:
            return {"label": -1, "group": number}
        if source.label == "label":
            text = raw.get("label.txt", b"-1").decode("ascii", "replace").strip()
        else:
            labels = meta.get("labels", {})
            text = str(labels.get(source.label, -1)) if isinstance(labels, dict) else f"of labels: {labels}"
        label = int(text) if re.fullmatch(r"-?\d{1,9}", text) else -2
        if not -1 <= label < source.classes:
            raise _error(
                raw,
                "label",
                f"{_where(raw)}: label `{text[:40]}` is not a class index in 0..{source.classes - 1}; "
                "run `wcord check` on the data set and pack it again.",
            )
        return {"label": label if self._visible(raw) else -1, "group": number}

    def _visible(self, raw: Sample) -> bool:
        """Whether a sample is one of those whose label is handed out."""
        return _unit(f"label/{self.source.seed}/{raw['__key__']}") < self.source.visible_labels

    def _mask(self, raw: Sample) -> np.ndarray | None:
        """The class of each pixel; None for a sample that has no mask, or whose mask is not handed out."""
        member = self.source.mask
        assert member is not None
        if member not in raw or not self._visible(raw):
            return None
        try:
            return read_mask(raw[member], self.source.values)
        except ValueError as error:
            message = f"{_where(raw)}: {member}: {error}. Run `wcord check` on the data set."
            raise _error(raw, member, message) from None

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Batch tensors by role; where samples without the teacher's view are kept, `paired [B]` tells them, bool.

        `mask [B, H, W]`, int64, where the task is one: the class of each pixel, -1 where unknown.
        """
        batch: Batch = {}
        for role, sight in self.views.items():
            batch[role] = together(sight, self._filled(role, [s[role] for s in samples]))
        if self.cached:
            features = self._filled("teacher", [s["teacher"] for s in samples])
            batch["teacher"] = {name: torch.stack([x[name] for x in features]) for name in features[0]}
        if self.keeps:
            seen = ("teacher", *self.views) if self.cached else tuple(self.views)
            batch["paired"] = torch.tensor([all(s[role] is not None for role in seen) for s in samples])
        batch["key"] = [s["key"] for s in samples]
        batch["index"] = torch.tensor([s["index"] for s in samples])
        batch["label"] = torch.tensor([s["label"] for s in samples])
        batch["group"] = torch.tensor([s["group"] for s in samples])
        if self.mask_size:
            batch["mask"] = torch.stack([s["mask"] for s in samples])
        return batch

    def _filled(self, role: str, values: list[Any]) -> list[Any]:
        """Another sample's view where there is none; nothing reads it, but a batch has one shape.

        Raises UserError if no sample of the split has one.
        """
        if all(v is not None for v in values):
            return values
        if role not in self.filler:
            seen = chain(values, self._seen(role))
            self.filler[role] = next((v for v in seen if v is not None), None)
        if self.filler[role] is None:
            raise UserError(
                f"{self.source.folder}: no sample of the split has what the {role} sees; pack it with what is missing, "
                "or name by data.join a data set that has it."
            )
        return [self.filler[role] if v is None else v for v in values]

    def _seen(self, role: str) -> Iterator[Any]:
        """What a network sees of the split's samples that have it, in the order of the shards; of a cached teacher,
        its features."""
        source = self.source
        if role not in self.views:
            for raw in read_range(source.folder, source.shards, 0, source.samples, frozenset(), True, source.beside(0)):
                with suppress(SampleError):
                    yield self._features(raw)[0]
            return
        sight = self.views[role]
        members = members_of(sight)
        for raw in read_range(source.folder, source.shards, 0, source.samples, members, source.tolerant):
            with suppress(SampleError):
                yield look(sight, complete(source, raw, members))


def members_of(sight: Sight) -> frozenset[str]:
    """The members of a sample that a network may need, its label and meta data among them."""
    own = (member for view in several(sight) for member in view.modality.members)
    return frozenset((*own, "meta.json", "label.txt"))


def look(sight: Sight, raw: Sample) -> Any:
    """What a network sees of a raw sample that nothing varies; SampleError for one that cannot be used."""
    meta = _meta(raw)
    seen = tuple(v.modality.augment(_decode(v.modality, raw, meta), Geometry(), v.size, None) for v in several(sight))
    return seen[0] if isinstance(sight, View) else seen


def together(sight: Sight, seen: Sequence[Any]) -> Any:
    """A network's batch of what it sees of each sample."""
    if isinstance(sight, View):
        return sight.modality.collate(seen)
    return tuple(v.modality.collate(x) for v, x in zip(sight, zip(*seen, strict=True), strict=True))


Shown = tuple[np.ndarray, list[Caption]]
"""A picture, uint8 RGB `[H, W, 3]`, and what stands beside it, one of each modality in it."""


def pictures(
    source: Source, views: Mapping[str, Sight], keys: Collection[str]
) -> Iterator[tuple[str, dict[str, Shown]]]:
    """What a person would see of the samples of these keys: key, and role -> picture and captions."""
    members = Prepare(source, views, None).members
    for raw in read_range(source.folder, source.shards, 0, source.samples, members, source.tolerant):
        if raw["__key__"] in keys:
            raw = complete(source, raw, members)
            meta = _meta(raw)
            yield raw["__key__"], {role: _shown(sight, raw, meta) for role, sight in views.items()}


def labelled(source: Source) -> bool:
    """Whether any sample of a split has a label, or a pixel of its mask a class; reads up to the first that has."""
    prepare = Prepare(source, {}, None)
    members = frozenset({"label.txt", "meta.json", source.mask or "label.txt"})
    for raw in read_range(source.folder, source.shards, 0, source.samples, members, source.tolerant):
        with suppress(SampleError):
            raw = complete(source, raw, members)
            mask = prepare._mask(raw) if source.mask else None
            if prepare._task(raw, _meta(raw))["label"] >= 0 or (mask is not None and (mask >= 0).any()):
                return True
    return False


def several(sight: Sight) -> tuple[View, ...]:
    """The views that a network has, one or more."""
    return (sight,) if isinstance(sight, View) else sight


def _shown(sight: Sight, raw: Sample, meta: Mapping[str, Any]) -> Shown:
    values = [(view.modality, _decode(view.modality, raw, meta)) for view in several(sight)]
    return _side_by_side([m.picture(v) for m, v in values]), [m.caption(v) for m, v in values]


def _side_by_side(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """As high as the first one."""
    height = len(pictures[0])
    widths = [max(round(p.shape[1] * height / len(p)), 1) for p in pictures]
    return np.hstack([cv2.resize(p, (w, height)) for p, w in zip(pictures, widths, strict=True)])


def _same_modality(a: Modality, b: Modality) -> bool:
    return type(a) is type(b) and vars(a) == vars(b)


def complete(source: Source, raw: Sample, members: frozenset[str]) -> Sample:
    """The sample with what other data sets have of it."""
    for other in source.joined:
        try:
            raw = other.complete(raw, members)
        except (OSError, ValueError) as error:  # noqa: PERF203
            raise _error(raw, "shard", f"{other.folder}: {error}. {CURE}") from None
    return raw


def _meta(raw: Sample) -> Mapping[str, Any]:
    try:
        meta = json.loads(raw.get("meta.json", b"{}"))
    except (ValueError, RecursionError) as error:
        message = f"{_where(raw)}: meta.json: not valid JSON ({error}); run `wcord check` on the data set."
        raise _error(raw, "meta.json", message) from None
    if not isinstance(meta, dict):
        message = f"{_where(raw)}: meta.json: expected an object, got {type(meta).__name__}."
        raise _error(raw, "meta.json", message)
    return meta


def _member(modality: Modality, raw: Sample) -> str | None:
    return next((field for field in modality.members if field in raw), None)


def _decode(modality: Modality, raw: Sample, meta: Mapping[str, Any]) -> Any:
    member = _member(modality, raw)
    if member is None:
        wanted = " or ".join(modality.members)
        message = (
            f"{_where(raw)}: has no {wanted}, which the modality `{modality.name}` reads; it has "
            f"{', '.join(sorted(k for k in raw if not k.startswith('__')))}. Run `wcord check` on the data set."
        )
        raise _error(raw, f"no {modality.members[0].partition('.')[0]}", message, unpaired=True)
    try:
        return modality.decode(raw[member], meta)
    except ValueError as error:
        message = f"{_where(raw)}: {member}: {error}. Run `wcord check` on the data set."
        raise _error(raw, member, message) from None


def _where(raw: Sample) -> str:
    return f"{raw['__url__']}: sample {raw['__key__']}"


def _error(raw: Sample, cause: str, message: str, unpaired: bool = False) -> SampleError:
    shard = Path(raw["__url__"]).name
    return SampleError(Skipped(shard, raw["__place__"], raw["__key__"], cause, message, unpaired))


def _unit(text: str) -> float:
    """A number in [0, 1) that is fixed by a text."""
    return digest(text) / 2**64
