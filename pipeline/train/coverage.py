"""Warns once if the inputs of a network are mostly empty, such as depth maps with few valid pixels."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from modalities.base import FEW_READINGS
from pipeline.data.views import Batch, View, ViewSpec, several

log = logging.getLogger(__name__)

BATCHES = 10
"""Only this many batches are checked, since reading a value from an accelerator waits for its result."""


def watch_coverage(batches: Iterator[Batch], views: Mapping[str, ViewSpec]) -> Iterator[Batch]:
    """Yield the batches, and warn about the first one whose inputs are mostly empty.

    Args:
        batches: The batches.
        views: Role -> views of the network.
    """
    warned = False
    for number, batch in enumerate(batches):
        if number < BATCHES and not warned and (found := few_readings(batch, views)):
            log.warning(found)
            warned = True
        yield batch


def few_readings(batch: Batch, views: Mapping[str, ViewSpec]) -> str | None:
    """Describe the first input of a batch that is mostly empty; None if there is none."""
    for role, sight in views.items():
        seen = (batch[role],) if isinstance(sight, View) else batch[role]
        for view, inputs in zip(several(sight), seen, strict=True):
            shares = view.modality.coverage(inputs)
            if shares is not None and (median := float(shares.median())) < FEW_READINGS:
                return (
                    f"{role}: only {median:.1%} of the input `{view.modality.name}` contains values (median of a batch "
                    f"at {view.size} x {view.size}). `wcord check DATA --config CONFIG` shows the network inputs."
                )
    return None
