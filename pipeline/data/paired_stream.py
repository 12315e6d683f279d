"""`wcord.stream`: the paired stream for user-written training loops."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

import modalities
from modalities.base import Modality
from pipeline.common.errors import UserError
from pipeline.data.augmentation import WHOLE, Augmentation
from pipeline.data.source import STRICT, Policy, open_dataset
from pipeline.data.stream import TrainStream, loader
from pipeline.data.user_stages import UserStage
from pipeline.data.views import Batch, View


def stream(
    shards: str,
    views: Mapping[str, str | Mapping[str, Any] | Modality],
    *,
    batch_size: int = 64,
    size: int = 224,
    augmentation: Augmentation = WHOLE,
    split: str = "train",
    label: str = "label",
    fields: Mapping[str, Sequence[str]] = {},
    join: Sequence[str] = (),
    stages: Sequence[str] = (),
    policy: Policy = STRICT,
    shuffle: int = 2000,
    workers: int = 0,
    start: int = 0,
    ranks: int = 1,
    rank: int = 0,
    device: str | torch.device = "cpu",
) -> Iterator[Batch]:
    """Stream paired batches from WebDataset shards. The stream is endless and reads every sample once per epoch.

    Args:
        shards: A packed or indexed folder, or a tar, glob, folder or pattern of WebDataset shards; see `data.shards`.
        views: Name of each view -> its modality: a name such as `rgb`, a dict of `name` and keywords, or an instance.
        batch_size: Samples per batch of this process.
        size: Side of images in pixels.
        augmentation: Crop, shift and flip, shared by all views of a sample. Its seed also determines the order.
        split: The split.
        label: The label; samples without it get -1.
        fields: Field -> extensions, if they are not detected; see `data.fields`.
        join: Datasets whose members are joined by key; see `data.join`.
        stages: User-defined stages, each `package.module:name`; see `data.stages`.
        policy: What to do with samples that cannot be used.
        shuffle: Size of the shuffle buffer in samples; 0 keeps the order of the shards.
        workers: Number of loader processes; 0 loads in this process.
        start: Number of batches to skip, so that an interrupted loop resumes exactly.
        ranks: Number of processes that share the shards.
        rank: Rank of this process.
        device: Device of the tensors.

    Yields:
        A dict: name of each view -> its batch; `key`, a list of strings; `index`, `label` and `group`, int64 `[B]`;
        `skipped`, the samples that were skipped.

    Raises:
        UserError: There are no such shards, or a sample cannot be used and the policy does not allow skipping it.

    Example:
        >>> for batch in wcord.stream("laion/{00000..00399}.tar", {"image": "rgb", "caption": "text"}):
        ...     loss = clip_loss(image_encoder(batch["image"]), text_encoder(batch["caption"]))
    """
    opened = open_dataset(shards, label, policy, join)
    opened = replace(opened, manifest=opened.manifest.named(fields), stages=tuple(map(UserStage, stages)))
    seen = {name: View(_modality(name, spec), size) for name, spec in views.items()}
    batches = TrainStream(
        opened.split(split), seen, augmentation, batch=batch_size, ranks=ranks, rank=rank, shuffle=shuffle, start=start
    )
    return loader(batches, workers, torch.device(device))


def _modality(name: str, spec: str | Mapping[str, Any] | Modality) -> Modality:
    if isinstance(spec, Modality):
        return spec
    own: Mapping[str, Any] = {"name": spec} if isinstance(spec, str) else spec
    try:
        return modalities.get(own["name"])(**{key: value for key, value in own.items() if key != "name"})
    except (ValueError, ImportError, TypeError) as error:
        raise UserError(f"views.{name}: {error}") from None
