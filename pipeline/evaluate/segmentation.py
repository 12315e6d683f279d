"""Segmentation scores from confusion counts of pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.models.decoder import resized

SHOWN = 12
"""Number of samples whose masks are stored for the report."""


def confusion(prediction: Tensor, label: Tensor, classes: int) -> Tensor:
    """Count how often class i is predicted as class j, over samples or pixels.

    Args:
        prediction: Class index, int64, any shape.
        label: Class index, int64, same shape; -1 is ignored.
        classes: Number of classes K.

    Returns:
        int64 `[K, K]`.
    """
    known = label >= 0
    pairs = label[known] * classes + prediction[known]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def scores(counts: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Compute segmentation scores from `confusion`.

    Only classes that occur in the ground truth are averaged, so the set of averaged classes does not depend on the
    prediction. Pixels that are predicted as another class still lower the IoU of their true class.

    Args:
        counts: `[K, K]` (true, predicted).
        names: Names of the K classes.

    Returns:
        `pixel_accuracy`, `mean_accuracy`, `mIoU` and `IoU/NAME` in [0, 1]; empty if no pixel has a class.
    """
    counts = counts.double().cpu()
    right, truth, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    there = truth > 0
    if not there.any():
        return {}
    recall, iou = (right / truth)[there], (right / (truth + predicted - right))[there]
    each = zip([name for name, is_there in zip(names, there.tolist(), strict=True) if is_there], iou, strict=True)
    return {
        "pixel_accuracy": float(right.sum() / truth.sum()),
        "mean_accuracy": float(recall.mean()),
        "mIoU": float(iou.mean()),
        **{f"IoU/{name}": float(value) for name, value in each},
    }


class SegmentationEvaluator:
    """Accumulates confusion counts over a split, and keeps the masks of SHOWN samples for the report.

    Args:
        names: Names of the classes.
        samples: Number of samples of the split.

    Attributes:
        shown: Key, `truth` and prediction of each role, int16 `[H, W]`, of each kept sample.
    """

    def __init__(self, names: Sequence[str], samples: int) -> None:
        self.names, self.every, self.seen = list(names), max(samples // SHOWN, 1), 0
        self.counts: dict[str, Tensor] = {}
        self.shown: list[dict[str, Any]] = []

    def add(self, keys: Sequence[str], mask: Tensor, logits: Mapping[str, Tensor]) -> None:
        """Add a batch.

        Args:
            keys: Keys of the B samples.
            mask: Ground truth `[B, H, W]`.
            logits: Role -> logits `[B, K, h, w]`, which are resized to the mask.
        """
        found = {role: resized(own, mask.shape[1:]).argmax(1) for role, own in logits.items()}
        for role, prediction in found.items():
            counts = confusion(prediction, mask, len(self.names))
            self.counts[role] = self.counts[role] + counts if role in self.counts else counts
        for row in (mask >= 0).flatten(1).any(1).nonzero().flatten().tolist():
            if self.seen % self.every == 0 and len(self.shown) < SHOWN:
                pictures = {role: own[row].short().cpu().numpy() for role, own in {"truth": mask, **found}.items()}
                self.shown.append({"key": keys[row], **pictures})
            self.seen += 1

    def scores(self, role: str) -> dict[str, float]:
        """The `scores` of a role so far; empty for a network without these classes."""
        return scores(self.counts[role], self.names) if role in self.counts else {}
