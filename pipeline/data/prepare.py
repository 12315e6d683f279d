"""Turns raw samples into the inputs of all networks under one shared geometry, and samples into batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch

from modalities.base import Geometry, Modality
from pipeline.common.errors import UserError
from pipeline.common.hashing import digest
from pipeline.data.augmentation import Augmentation
from pipeline.data.decoding import decode_member, member_of, meta_of, place_of, sample_error
from pipeline.data.feature_cache import decode
from pipeline.data.masks import target
from pipeline.data.random_state import generator
from pipeline.data.shard_reader import Sample
from pipeline.data.source import Source
from pipeline.data.views import Batch, View, ViewSpec, collate_view, required_members, same_modality, several


class Prepare:
    """Prepares samples: decodes members, applies one geometry to all views and photometric changes to each modality.

    Args:
        source: The split.
        views: Role -> views of the network.
        augmentation: Augmentation; None for evaluation.
    """

    def __init__(self, source: Source, views: Mapping[str, ViewSpec], augmentation: Augmentation | None) -> None:
        self.source, self.augmentation, self.first = source, augmentation, source.first()
        self.views = dict(views)
        self.members = frozenset(member for sight in self.views.values() for member in required_members(sight))
        # The mask gets the input size of the student.
        student = next(iter(several(self.views["student"]))) if source.task.mask and "student" in self.views else None
        self.mask_size = student and student.size
        if self.mask_size or source.task.foreign:
            self.members |= source.task.members
        # Views with equal modalities are decoded only once. If their sizes are also equal, they share the tensor.
        self.modalities: list[Modality] = []
        self.slots = {role: [self._slot(view) for view in several(sight)] for role, sight in self.views.items()}
        # Roles with equal views share one batch, which is collated and sent to the training process only once.
        self.twins = {role: next(filter(partial(self._twins, role), self.views)) for role in self.views}
        self.distinct = sorted({slot for slots in self.slots.values() for slot in slots})
        # With `unpaired: keep`, samples may lack the modalities that only the teacher receives.
        needed = {number for number, *_ in self.slots.get("student", [])}
        self.cached = augmentation is not None and source.cache is not None
        keep = augmentation is not None and "student" in self.slots and source.policy.unpaired == "keep"
        self.optional = set(range(len(self.modalities))) - needed if keep else set()
        self.keeps = bool(self.optional) or (keep and self.cached)
        self.filler: dict[str, Any] = {}

    def _slot(self, view: View) -> tuple[int, int, float]:
        """Index of the modality that decodes the view, and size and crop of the view."""
        for number, known in enumerate(self.modalities):
            if same_modality(known, view.modality):
                return number, view.size, view.crop
        self.modalities.append(view.modality)
        return len(self.modalities) - 1, view.size, view.crop

    def _twins(self, role: str, other: str) -> bool:
        """Whether two roles have equal views."""
        one_view = isinstance(self.views[role], View) == isinstance(self.views[other], View)
        return one_view and self.slots[role] == self.slots[other]

    def __call__(self, raw: Sample, epoch: int) -> Sample:
        """Prepare one sample.

        Args:
            raw: The raw sample.
            epoch: The epoch of the augmentation.

        Returns:
            Role -> input of the network, and `key`, `index`, `geometry`, `label`, `group`, and `mask` for masks.

        Raises:
            SampleError: The sample cannot be used.
        """
        if "__lost__" in raw:
            raise sample_error(raw, "shard", f"{raw['__url__']}: {raw['__lost__']}")
        raw = self.source.complete(raw, self.members)
        meta = meta_of(raw)
        decoded = [
            None if number in self.optional and member_of(modality, raw) is None else decode_member(modality, raw, meta)
            for number, modality in enumerate(self.modalities)
        ]
        seed = digest(raw["__key__"])
        geometry = Geometry()
        features = None
        if self.cached and ("__cached__" in raw or not self.keeps):
            features, geometry = self._features(raw)
        elif self.augmentation is not None:
            geometry = self.augmentation.geometry(epoch, seed)

        index = self.first[raw["__url__"]] + raw["__place__"]  # in the split, independent of the shuffling
        sample: Sample = {"key": raw["__key__"], "index": index, "geometry": geometry}
        sample |= self.source.task.read(raw, meta)
        if self.cached:
            sample["teacher"] = features
        if self.mask_size:
            sample["mask"] = target(self.source.task.read_mask(raw), geometry, self.mask_size)
        tensors: dict[tuple[int, int, float], torch.Tensor | None] = {}
        for number, size, crop in self.distinct:
            # All views of a modality use the same random numbers, regardless of other views: equal colours at any size.
            modality, drawn, value = self.modalities[number], self.augmentation, decoded[number]
            rng_view = generator(drawn.seed, epoch, seed, digest(modality.name)) if drawn and modality.random else None
            part = geometry.centre(crop)
            tensors[number, size, crop] = None if value is None else modality.augment(value, part, size, rng_view)
        for role, slots in self.slots.items():
            seen = tuple(tensors[slot] for slot in slots)
            whole = seen[0] if isinstance(self.views[role], View) else seen
            sample[role] = None if any(part is None for part in seen) else whole
        return sample

    def _features(self, raw: Sample) -> tuple[dict[str, torch.Tensor], Geometry]:
        """The cached teacher features of this epoch's view, and its geometry."""
        if "__cached__" not in raw:
            # Only `wcord cache` knows whether the sample lacked the teacher's modality or could not be read.
            message = f"{place_of(raw)}: the cache has no features of this sample, since `wcord cache` skipped it."
            raise sample_error(raw, "not cached", message, unpaired=self.source.policy.unpaired != "error")
        try:
            return decode(raw["__cached__"])
        except ValueError as error:
            raise sample_error(raw, "not cached", f"{place_of(raw)}: {error}; run `wcord cache` again.") from None

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Build a batch of B prepared samples.

        Args:
            samples: The samples.

        Returns:
            Role -> batch of the modality; `teacher` -> features, with a cache. `key`, a list of B strings. `index`,
            `label` and `group`, int64 `[B]`; -1 if unknown. If the task is a mask: `mask`, int64 `[B, H, W]`, the class
            of each pixel, -1 if unknown. With `unpaired: keep`: `paired`, bool `[B]`, whether the teacher's modality
            exists.

        Raises:
            UserError: No sample of the split has the input of a network.
        """
        batch: Batch = {}
        for role, sight in self.views.items():
            if (twin := self.twins[role]) in batch:
                batch[role] = batch[twin]
            else:
                batch[role] = collate_view(sight, self._filled(role, [s[role] for s in samples]))
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
        """Replace missing views by another sample's, so that the batch has one shape. The losses ignore them.

        Raises:
            UserError: No sample of the split has this view.
        """
        if all(v is not None for v in values):
            return values
        if role not in self.filler:
            others = self.source.seen(self.views[role]) if role in self.views else self.source.features()
            self.filler[role] = next((v for v in chain(values, others) if v is not None), None)
        if self.filler[role] is None:
            raise UserError(
                f"{self.source.folder}: no sample of the split has the input of the {role}. Pack the data with the "
                "field of its modality, or set data.join to a dataset that has it."
            )
        return [self.filler[role] if v is None else v for v in values]
