"""Stores individual samples, so the report needs neither the data nor the networks.

The files in `evaluation/` are `embeddings.npz`, `thumbnails.npz`, `captions.json`, `confusion.npz` and, for
segmentation, `masks.npz`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from modalities.base import Caption
from pipeline.common.files import write_atomic
from pipeline.data.pictures import pictures
from pipeline.data.source import Source
from pipeline.data.views import View, ViewSpec
from pipeline.evaluate.segmentation import SegmentationEvaluator
from pipeline.runs.artifacts import read_confusion

PICTURES, THUMBNAIL, EMBEDDINGS = 300, 72, 5000
"""Number of stored pictures, their height in pixels, and number of stored embeddings."""


def write_examples(
    folder: Path,
    views: Mapping[str, ViewSpec],
    source: Source,
    samples: Mapping[str, np.ndarray],
    embeddings: Mapping[str, np.ndarray],
) -> None:
    """Write embeddings and pictures of samples, evenly spaced over the split.

    Args:
        folder: The folder `evaluation`.
        views: Role -> its view.
        source: The split.
        samples: `keys`, `label` and `prediction`, each `[N]`, and `classes`.
        embeddings: Role -> `[N, D]` in the shared space.
    """
    folder.mkdir(exist_ok=True)
    keys = samples["keys"]
    rows = np.linspace(0, len(keys) - 1, min(EMBEDDINGS, len(keys))).astype(int)
    chosen = {name: array if name == "classes" else array[rows] for name, array in samples.items()}
    unit = {
        k: v[rows] / np.maximum(np.linalg.norm(v[rows], axis=1, keepdims=True), 1e-12) for k, v in embeddings.items()
    }
    write_arrays(folder / "embeddings.npz", chosen | {role: x.astype(np.float16) for role, x in unit.items()})
    shown = rows[np.linspace(0, len(rows) - 1, min(PICTURES, len(rows))).astype(int)]
    seen = dict(pictures(source, views, set(keys[shown])))
    thumbnails = {"rows": np.searchsorted(rows, shown)}
    for role, view in views.items():
        thumbnails[role] = np.stack([thumbnail(seen[key][role][0]) for key in keys[shown]])
        seen_by = (view,) if isinstance(view, View) else view
        thumbnails[f"{role}_modality"] = np.array(" + ".join(v.modality.name for v in seen_by))
    write_arrays(folder / "thumbnails.npz", thumbnails)
    captions = {role: [[_plain(c) for c in seen[key][role][1]] for key in keys[shown]] for role in views}
    write_atomic(folder / "captions.json", json.dumps(captions).encode())


def write_confusion(
    folder: Path,
    label: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    classes: Sequence[str],
    baselines: Sequence[Path],
) -> None:
    """Write the confusion counts of ALL test samples for each network, and for the student of each baseline.

    Baselines with other classes are skipped.

    Args:
        folder: The folder `evaluation`.
        label: Class index `[N]`; -1 if unknown.
        predictions: Role -> predicted class index `[N]`.
        classes: Names of the classes.
        baselines: Run folders.

    Raises:
        UserError: The counts of a baseline are damaged.
    """
    folder.mkdir(exist_ok=True)
    found = {role: count_confusion(label, prediction, len(classes)) for role, prediction in predictions.items()}
    for run in baselines:
        theirs = read_confusion(run)
        if theirs is not None and "student" in theirs.roles and theirs.classes == list(classes):
            found[f"baseline/{run.name}"] = theirs.roles["student"]
    write_arrays(folder / "confusion.npz", {"classes": np.array(classes), **found})


def write_masks(folder: Path, views: Mapping[str, ViewSpec], source: Source, tally: SegmentationEvaluator) -> None:
    """Write a few true and predicted masks to `masks.npz`, with the pictures that the networks received."""
    if not tally.shown:
        return
    keys = [one["key"] for one in tally.shown]
    seen = dict(pictures(source, views, set(keys)))
    arrays = {"keys": np.array(keys), "classes": np.array(tally.names)}
    arrays |= {role: np.stack([one[role] for one in tally.shown]) for role in tally.shown[0] if role != "key"}
    for role in views:
        height, width = seen[keys[0]][role][0].shape[:2]
        size = (max(round(width * THUMBNAIL / height), 1), THUMBNAIL)
        resized = [cv2.resize(seen[key][role][0], size, interpolation=cv2.INTER_AREA) for key in keys]
        arrays[f"{role}_picture"] = np.stack(resized)
    write_arrays(folder / "masks.npz", arrays)


def count_confusion(label: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    """Confusion matrix `[K, K]` (true class, predicted class) over samples with a label and a prediction."""
    known = (label >= 0) & (prediction >= 0)
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (label[known], prediction[known]), 1)
    return counts


def thumbnail(picture: np.ndarray, side: int = THUMBNAIL) -> np.ndarray:
    """Fit the whole picture into a square of `side` pixels with a grey background."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    small = cv2.resize(
        picture, (max(round(width * scale), 1), max(round(height * scale), 1)), interpolation=cv2.INTER_AREA
    )
    square = np.full((side, side, 3), 128, np.uint8)
    top, left = (side - small.shape[0]) // 2, (side - small.shape[1]) // 2
    square[top : top + small.shape[0], left : left + small.shape[1]] = small
    return square


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a compressed npz file atomically."""
    buffer = BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_atomic(path, buffer.getvalue())


def _plain(caption: Caption) -> dict[str, Any]:
    sound = base64.b64encode(caption.sound).decode()
    return {"text": caption.text, "colours": list(caption.colours), "sound": sound}
