"""Training warns once if its inputs are mostly empty."""

from __future__ import annotations

import logging

import pytest
import torch

from modalities import RGB, Depth
from pipeline.data.views import Batch, View
from pipeline.train.coverage import BATCHES, watch_coverage

VIEWS = {"teacher": View(RGB(), 8), "student": (View(Depth(), 8), View(RGB(), 8))}


def batch(share: float) -> Batch:
    depth = torch.zeros(4, 2, 8, 8)
    depth[:, 1, :, : round(8 * share)] = 1
    photos = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    return {"teacher": photos, "student": (depth, photos)}


@pytest.mark.parametrize(
    ("shares", "warnings"),
    [([1, 0.5, 0.25], 0), ([1, 0.125, 0, 0], 1), ([1] * BATCHES + [0], 0)],
)
def test_inputs_with_few_readings_are_reported_once(
    shares: list[float], warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    batches = [batch(share) for share in shares]
    with caplog.at_level(logging.WARNING):
        assert list(watch_coverage(iter(batches), VIEWS)) == batches
    assert len(caplog.records) == warnings
    assert all("student: only 12.5% of the input `depth` contains values" in line for line in caplog.messages)
