"""What evaluation kept of test samples, as the report reads it."""

from __future__ import annotations

import base64
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from modalities.base import Caption
from pipeline.errors import UserError


@dataclass(frozen=True)
class Embeddings:
    """`evaluation/embeddings.npz`: test samples in one common space.

    keys `[N]`; label `[N]` int, -1 unknown; classes `[K]`; prediction `[N]` int or None; student `[N, D]` and
    teacher `[N, D]` (or None without a teacher), float32, L2-normalised. broken: vectors that were not finite and
    stand as zeros.
    """

    keys: np.ndarray
    label: np.ndarray
    classes: list[str]
    prediction: np.ndarray | None
    student: np.ndarray
    teacher: np.ndarray | None
    broken: int = 0

    def class_name(self, index: int) -> str:
        """The class of that index, `unknown` for -1."""
        return self.classes[index] if 0 <= index < len(self.classes) else "unknown"

    def predicted(self, row: int) -> str:
        """What the student takes a sample for, in words; "" where it has no class head."""
        index = -1 if self.prediction is None else int(self.prediction[row])
        return f"predicted {self.class_name(index)}" if index >= 0 else ""


@dataclass(frozen=True)
class Thumbnails:
    """`evaluation/thumbnails.npz`: pictures `[n, h, w, 3]` uint8 of the embeddings' rows `rows [n]`.

    captions: `evaluation/captions.json`, role -> for each picture the captions of its modalities; empty without it.
    """

    rows: np.ndarray
    student: np.ndarray
    teacher: np.ndarray | None
    student_modality: str
    teacher_modality: str
    captions: Mapping[str, list[list[Caption]]] = field(default_factory=dict)

    def caption(self, role: str, index: int) -> list[Caption]:
        """The captions of a picture, one a modality."""
        return self.captions[role][index] if role in self.captions else []

    def text(self, role: str, index: int) -> str:
        """What these captions say, in one line."""
        return " · ".join(caption.text for caption in self.caption(role, index) if caption.text)


def read_embeddings(folder: Path) -> Embeddings | None:
    """Read a run's embeddings; None if there are none. Raises UserError if the file is not what `evaluate` writes."""
    path = folder / "evaluation" / "embeddings.npz"
    if (data := _load(path)) is None:
        return None
    keys = _array(path, data, "keys", 1, "U")
    classes = _array(path, data, "classes", 1, "U") if _filled(data, "classes") else np.empty(0, "U1")
    label, student = _array(path, data, "label", 1, "iu", len(keys)), _array(path, data, "student", 2, "f", len(keys))
    teacher = _array(path, data, "teacher", 2, "f", len(keys)) if _filled(data, "teacher") else None
    prediction = _array(path, data, "prediction", 1, "iu", len(keys)) if _filled(data, "prediction") else None
    if teacher is not None and teacher.shape != student.shape:
        raise _fault(path, f"student {list(student.shape)} and teacher {list(teacher.shape)} are not in one space")
    for name, indices in (("label", label), ("prediction", prediction)):
        if indices is not None and indices.max() >= len(classes):
            raise _fault(path, f"{name} {indices.max()} has no name in classes")
    sides = [side.astype(np.float32) for side in (student, teacher) if side is not None]
    broken = int(sum((~np.isfinite(side).all(axis=1)).sum() for side in sides))
    sides = [np.nan_to_num(side, posinf=0, neginf=0) for side in sides]
    names = [str(name) for name in classes]
    return Embeddings(keys, label, names, prediction, sides[0], sides[1] if len(sides) > 1 else None, broken)


def read_thumbnails(folder: Path, samples: int) -> Thumbnails | None:
    """Read a run's pictures, of `samples` embeddings; None if there are none. UserError as for the embeddings."""
    path = folder / "evaluation" / "thumbnails.npz"
    if (data := _load(path)) is None:
        return None
    rows = _array(path, data, "rows", 1, "iu")
    if rows.min() < 0 or rows.max() >= samples:
        raise _fault(path, f"rows point outside the {samples} embeddings")
    student = _array(path, data, "student", 4, "u", len(rows))
    teacher = _array(path, data, "teacher", 4, "u", len(rows)) if _filled(data, "teacher") else None
    names = [str(data.get(f"{side}_modality", side)) for side in ("student", "teacher")]
    captions = _read_captions(folder / "evaluation" / "captions.json", len(rows))
    return Thumbnails(rows, student, teacher, names[0], names[1], captions)


@dataclass(frozen=True)
class Confusion:
    """`evaluation/confusion.npz`: counts `[K, K]` (true, predicted) of all test samples, by role.

    roles: `student`, `teacher` and `baseline/NAME`, as far as they know the classes.
    """

    classes: list[str]
    roles: Mapping[str, np.ndarray]


def read_confusion(folder: Path) -> Confusion | None:
    """Read a run's confusion counts; None if there are none. UserError as for the embeddings."""
    path = folder / "evaluation" / "confusion.npz"
    if (data := _load(path)) is None:
        return None
    if not _filled(data, "classes"):
        return Confusion([], {})
    classes = [str(name) for name in _array(path, data, "classes", 1, "U")]
    roles = {role: _array(path, data, role, 2, "iu", len(classes)) for role in data if role != "classes"}
    for role, counts in roles.items():
        if counts.shape[1] != len(classes) or counts.min() < 0:
            raise _fault(path, f"array {role!r} does not count {len(classes)} classes")
    return Confusion(classes, {role: counts for role, counts in roles.items() if counts.any()})


def spread(embeddings: np.ndarray) -> float:
    """How far unit vectors `[N, D]` spread: 1 - |mean|^2, from 0 (all the same) to 1 (evenly around the sphere)."""
    return float(1 - np.square(embeddings.mean(axis=0)).sum())


def _load(path: Path) -> dict[str, np.ndarray] | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as data:
            return dict(data)
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise _fault(path, f"not a readable npz file ({error})") from None


def _filled(data: dict[str, np.ndarray], name: str) -> bool:
    return name in data and data[name].size > 0


def _array(
    path: Path, data: dict[str, np.ndarray], name: str, axes: int, kinds: str, length: int | None = None
) -> np.ndarray:
    """The array of that name: so many axes, a dtype of these kinds, not empty, and `length` long."""
    if name not in data:
        raise _fault(path, f"array {name!r} is missing")
    array = data[name]
    shaped = array.ndim == axes and array.size > 0 and (axes < 4 or array.shape[-1] == 3)
    if not shaped or array.dtype.kind not in kinds or (length is not None and len(array) != length):
        raise _fault(path, f"array {name!r} is {array.dtype} {list(array.shape)}, which does not fit")
    return array


def _fault(path: Path, what: str) -> UserError:
    return UserError(f"{path}: {what}; not what this version of `wcord evaluate` writes. Run it again for this run.")


def _read_captions(path: Path, pictures: int) -> dict[str, list[list[Caption]]]:
    if not path.is_file():
        return {}
    try:
        read = json.loads(path.read_bytes())
        found = {str(role): [[_caption(one) for one in several] for several in rows] for role, rows in read.items()}
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise _fault(path, f"not captions ({error})") from None
    if any(len(rows) != pictures for rows in found.values()):
        raise _fault(path, f"not a caption for each of {pictures} pictures")
    return found


def _caption(plain: Mapping[str, Any]) -> Caption:
    colours = tuple(str(colour) for colour in plain["colours"])
    if not all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in colours):
        raise ValueError(f"colours {colours}")
    return Caption(str(plain["text"]), colours, base64.b64decode(plain["sound"], validate=True))
