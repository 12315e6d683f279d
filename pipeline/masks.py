"""Masks, a class for each pixel: read as targets, and counted against predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from modalities.base import Geometry
from modalities.image_header import image_size
from pipeline.decoder import resized

SHOWN = 12
"""Samples of a split whose masks are kept for the report."""


def read_mask(data: bytes, values: Sequence[int]) -> np.ndarray:
    """The class of each pixel, int64 `[H, W]`: the place of its value in `values`; -1, ignored, for any other value.

    data: a PNG with one channel of 8 or 16 bit. Raises ValueError for anything else.
    """
    image_size(data)  # refuses what would unpack to gigabytes
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        image = None
    if image is None or image.ndim != 2 or image.dtype not in (np.uint8, np.uint16):
        raise ValueError("not a mask: a PNG with one channel of 8 or 16 bit is expected")
    classes = np.full(1 << 16, -1)
    classes[list(values)] = np.arange(len(values))
    return classes[image]


def target(mask: np.ndarray | None, geometry: Geometry, size: int) -> Tensor:
    """A mask under a sample's geometry, int64 `[size, size]`; all -1 where there is none."""
    if mask is None:
        return torch.full((size, size), -1)
    # Shifted by one, for what a geometry shows beyond the edge is 0, and that has to be unknown.
    return torch.from_numpy(geometry.resize(mask.astype(np.int32) + 1, size, nearest=True)).long() - 1


def confusion(prediction: Tensor, label: Tensor, classes: int) -> Tensor:
    """How many samples, or pixels, of class i are taken for class j: int64 `[K, K]`. Both int64, of one shape; a label
    of -1 does not count."""
    known = label >= 0
    pairs = label[known] * classes + prediction[known]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def scores(counts: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Pixel accuracy, mean accuracy of the classes, mean IoU and IoU of each, in [0, 1], of a `confusion`.

    Only classes that occur in the truth count as classes, so that the mean is over the same ones whatever was
    predicted; pixels taken for another class still lower the IoU of their own. `{}` if no pixel has a class.
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


class Tally:
    """What networks make of the masks of a split: counts over all of it, and SHOWN of them for people to look at.

    names: of the classes. shown: key, `truth` and each role's prediction, int16 `[H, W]`, of a sample.
    """

    def __init__(self, names: Sequence[str], samples: int) -> None:
        self.names, self.every, self.seen = list(names), max(samples // SHOWN, 1), 0
        self.counts: dict[str, Tensor] = {}
        self.shown: list[dict[str, Any]] = []

    def add(self, keys: Sequence[str], mask: Tensor, logits: Mapping[str, Tensor]) -> None:
        """A batch of masks `[B, H, W]` and each role's logits `[B, K, h, w]`, which are brought to their size."""
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
        """What `scores` says of the pixels counted so far; empty for a network without these classes."""
        return scores(self.counts[role], self.names) if role in self.counts else {}
