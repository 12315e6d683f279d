"""Pictures of samples for reports."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from modalities.base import Caption, Modality
from pipeline.data.decoding import decode_member, meta_of
from pipeline.data.shard_reader import Sample
from pipeline.data.source import Source
from pipeline.data.views import ViewSpec, required_members, several

Shown = tuple[np.ndarray, list[Caption]]
"""A picture, uint8 RGB `[H, W, 3]`, and a caption for each modality in it."""


def pictures(
    source: Source, views: Mapping[str, ViewSpec], keys: Collection[str]
) -> Iterator[tuple[str, dict[str, Shown]]]:
    """Draw the samples with these keys.

    Args:
        source: The split.
        views: Role -> views of the network.
        keys: Keys of the samples.

    Yields:
        The key of a sample, and role -> picture and captions.

    Raises:
        SampleError: A sample lacks a member, or it cannot be decoded.
    """
    members = frozenset[str]().union(*map(required_members, views.values()))
    for raw in source.read(members):
        if raw["__key__"] in keys:
            raw = source.complete(raw, members)
            meta = meta_of(raw)
            yield raw["__key__"], {role: _shown(sight, raw, meta) for role, sight in views.items()}


def draw(modality: Modality, raw: Sample, meta: Mapping[str, Any]) -> tuple[np.ndarray, Caption]:
    """Draw a modality of a raw sample.

    Args:
        modality: The modality.
        raw: The raw sample.
        meta: Its `meta.json`.

    Returns:
        The picture, uint8 RGB `[H, W, 3]`, and its caption.

    Raises:
        SampleError: The member is missing or cannot be decoded.
    """
    value = decode_member(modality, raw, meta)
    return modality.picture(value), modality.caption(value)


def _shown(sight: ViewSpec, raw: Sample, meta: Mapping[str, Any]) -> Shown:
    drawn = [draw(view.modality, raw, meta) for view in several(sight)]
    return _side_by_side([picture for picture, _ in drawn]), [caption for _, caption in drawn]


def _side_by_side(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Scale all pictures to the height of the first one and put them next to each other."""
    height = len(pictures[0])
    widths = [max(round(p.shape[1] * height / len(p)), 1) for p in pictures]
    return np.hstack([cv2.resize(p, (w, height)) for p, w in zip(pictures, widths, strict=True)])
