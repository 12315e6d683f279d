"""Samples are taken from every part of a batch alike, by a slice or by their indices."""

from __future__ import annotations

import pytest
import torch

from losses import Features
from pipeline.data.rows import take_rows


@pytest.mark.parametrize("rows", [slice(1, 3), [1, 2]], ids=["slice", "indices"])
def test_rows_of_tensors_texts_and_features(rows: slice | list[int]) -> None:
    x = torch.arange(8.0).view(4, 2)
    batch = {"key": ["a", "b", "c", "d"], "student": (x, {"mask": x > 3}), "teacher": Features(x, [x], None)}
    found = take_rows(batch, rows)
    assert found["key"] == ["b", "c"]
    assert torch.equal(found["student"][0], x[1:3])
    assert torch.equal(found["student"][1]["mask"], x[1:3] > 3)
    assert torch.equal(found["teacher"].pooled, x[1:3])
    assert torch.equal(found["teacher"].maps[0], x[1:3])
    assert found["teacher"].logits is None
