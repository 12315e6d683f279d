"""Masks as targets and as counts: against scores written out, and against what is cropped by hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from modalities.base import Geometry
from pipeline.data.masks import read_mask, target
from pipeline.evaluate.segmentation import SHOWN, SegmentationEvaluator, confusion, scores


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


def test_values_become_classes_and_all_others_none() -> None:
    image = np.array([[0, 255, 7], [300, 0, 65535]], np.uint16)
    np.testing.assert_array_equal(read_mask(png(image), (0, 255, 300)), [[0, 1, -1], [2, 0, -1]])
    np.testing.assert_array_equal(read_mask(png(image.astype(np.uint8)), (255,)), [[-1, 0, -1], [-1, -1, 0]])


@pytest.mark.parametrize("data", [b"", b"mask", png(np.zeros((4, 4, 3), np.uint8)), png(np.zeros((64, 64)))[:40]])
def test_what_is_no_mask_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        read_mask(data, (0,))


def test_a_mask_follows_the_geometry_without_mixing_classes() -> None:
    mask = np.zeros((40, 60), np.int64)
    mask[10:30, 15:30], mask[10:30, 30:45] = 4, 15
    geometry = Geometry(0.25, 0.25, 0.75, 0.75, flip=True)
    found = target(mask, geometry, 12)
    assert found.dtype == torch.int64
    assert (found[:, :6] == 15).all()
    assert (found[:, 6:] == 4).all()
    ragged = target(np.random.default_rng(0).choice([0, 4, 15], (40, 60)), Geometry(0.1, 0.2, 0.83, 0.9), 17)
    assert set(ragged.unique().tolist()) <= {0, 4, 15}
    assert (target(None, geometry, 12) == -1).all()


def by_hand(prediction: torch.Tensor, mask: torch.Tensor, classes: int) -> dict[str, float]:
    known = mask >= 0
    recall, iou = [], []
    for c in range(classes):
        true, taken = (mask == c) & known, (prediction == c) & known
        if true.any():
            recall.append(float((true & taken).sum() / true.sum()))
            iou.append(float((true & taken).sum() / (true | taken).sum()))
    pixels = float((prediction == mask)[known].float().mean())
    return {"pixel_accuracy": pixels, "mean_accuracy": float(np.mean(recall)), "mIoU": float(np.mean(iou))}


def test_scores_are_their_definitions_whatever_the_parts() -> None:
    """Class 3 is never true and sometimes predicted, class 5 neither."""
    rng = torch.Generator().manual_seed(0)
    mask = torch.tensor([-1, 0, 1, 2, 4])[torch.randint(0, 5, (6, 9, 9), generator=rng)]
    prediction = torch.randint(0, 5, (6, 9, 9), generator=rng)
    whole = confusion(prediction, mask, 6)
    assert whole.sum() == (mask >= 0).sum()
    assert torch.equal(whole, sum(confusion(p, m, 6) for p, m in zip(prediction, mask, strict=True)))
    found = scores(whole, list("abcdef"))
    for name, value in by_hand(prediction, mask, 6).items():
        assert found[name] == pytest.approx(value), name
    assert {name for name in found if name.startswith("IoU/")} == {"IoU/a", "IoU/b", "IoU/c", "IoU/e"}
    assert scores(torch.zeros(6, 6), list("abcdef")) == {}


def test_a_perfect_prediction_is_one() -> None:
    mask = torch.randint(-1, 3, (2, 8, 8))
    assert set(scores(confusion(mask.clamp(min=0), mask, 3), "abc").values()) == {1.0}


def test_a_tally_counts_everything_and_shows_a_few() -> None:
    tally = SegmentationEvaluator(["a", "b"], samples=5 * SHOWN)
    rng = torch.Generator().manual_seed(0)
    total = torch.zeros(2, 2, dtype=torch.int64)
    for part in range(SHOWN):
        mask = torch.randint(-1, 2, (5, 6, 6), generator=rng)
        mask[0] = -1  # no mask: nothing to show
        logits = torch.randn(5, 2, 6, 6, generator=rng)
        tally.add([f"{part}-{row}" for row in range(5)], mask, {"student": logits})
        total += confusion(logits.argmax(1), mask, 2)
    assert torch.equal(tally.counts["student"], total)
    assert tally.scores("student") == scores(total, ["a", "b"])
    assert tally.scores("teacher") == {}
    assert 0 < len(tally.shown) <= SHOWN
    assert all((one["truth"] >= 0).any() and not one["key"].endswith("-0") for one in tally.shown)


def test_a_larger_prediction_is_brought_to_the_mask() -> None:
    tally = SegmentationEvaluator(["a", "b"], samples=1)
    logits = torch.zeros(1, 2, 8, 8)
    logits[:, 1, :, 4:] = 1
    mask = torch.tensor([[0, 0, 1, 1]]).expand(1, 4, 4)
    tally.add(["k"], mask, {"teacher": logits})
    assert tally.scores("teacher")["mIoU"] == 1
