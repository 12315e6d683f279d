"""Reads the files that evaluation stored about test samples, for the report."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from modalities.base import Caption
from pipeline.common.disk_errors import machine_fault
from pipeline.common.errors import UserError


@dataclass(frozen=True)
class Embeddings:
    """`evaluation/embeddings.npz`: test samples in a shared space.

    Attributes:
        keys: `[N]`.
        label: Class index, int `[N]`; -1 if unknown.
        classes: Names of the K classes.
        prediction: Predicted class index, int `[N]`; None without a class head.
        student: float32 `[N, D]`, L2-normalised.
        teacher: The same for the teacher; None without a teacher.
        broken: Number of vectors that were not finite and have been replaced by zeros.
    """

    keys: np.ndarray
    label: np.ndarray
    classes: list[str]
    prediction: np.ndarray | None
    student: np.ndarray
    teacher: np.ndarray | None
    broken: int = 0

    @property
    def labelled(self) -> bool:
        """Whether any sample has a label."""
        return bool((self.label >= 0).any())

    def class_name(self, index: int) -> str:
        """Name of a class by index. For -1, `unknown`, or an empty string if no sample has a label."""
        if 0 <= index < len(self.classes):
            return self.classes[index]
        return "unknown" if self.labelled else ""

    def predicted(self, row: int) -> str:
        """The prediction of the student as text; empty without a class head."""
        index = -1 if self.prediction is None else int(self.prediction[row])
        return f"predicted {self.class_name(index)}" if index >= 0 else ""


@dataclass(frozen=True)
class Thumbnails:
    """`evaluation/thumbnails.npz`: pictures of some of the embeddings.

    Attributes:
        rows: Rows of the embeddings, int `[n]`.
        student: Pictures, uint8 `[n, H, W, 3]`.
        teacher: The same for the teacher; None without a teacher.
        student_modality: Name of the modality.
        teacher_modality: Name of the modality.
        captions: `evaluation/captions.json`: role -> captions of the modalities of each picture; empty if it is
            missing.
    """

    rows: np.ndarray
    student: np.ndarray
    teacher: np.ndarray | None
    student_modality: str
    teacher_modality: str
    captions: Mapping[str, list[list[Caption]]] = field(default_factory=dict)

    def caption(self, role: str, index: int) -> list[Caption]:
        """The captions of a picture, one per modality."""
        return self.captions[role][index] if role in self.captions else []

    def text(self, role: str, index: int) -> str:
        """The text of the captions of a picture in one line."""
        return " · ".join(caption.text for caption in self.caption(role, index) if caption.text)


def read_embeddings(folder: Path) -> Embeddings | None:
    """Read the embeddings of a run; None if there are none.

    Raises:
        UserError: The file does not have the format that `evaluate` writes.
    """
    path = folder / "evaluation" / "embeddings.npz"
    if (data := read_arrays(path)) is None:
        return None
    keys = _array(path, data, "keys", 1, "U")
    classes = _array(path, data, "classes", 1, "U") if _filled(data, "classes") else np.empty(0, "U1")
    label, student = _array(path, data, "label", 1, "iu", len(keys)), _array(path, data, "student", 2, "f", len(keys))
    teacher = _array(path, data, "teacher", 2, "f", len(keys)) if _filled(data, "teacher") else None
    prediction = _array(path, data, "prediction", 1, "iu", len(keys)) if _filled(data, "prediction") else None
    if teacher is not None and teacher.shape != student.shape:
        raise _fault(path, f"student {list(student.shape)} and teacher {list(teacher.shape)} have different shapes")
    for name, indices in (("label", label), ("prediction", prediction)):
        if indices is not None and indices.max() >= len(classes):
            raise _fault(path, f"{name} {indices.max()} has no name in classes")
    sides = [side.astype(np.float32) for side in (student, teacher) if side is not None]
    broken = int(sum((~np.isfinite(side).all(axis=1)).sum() for side in sides))
    sides = [np.nan_to_num(side, posinf=0, neginf=0) for side in sides]
    names = [str(name) for name in classes]
    return Embeddings(keys, label, names, prediction, sides[0], sides[1] if len(sides) > 1 else None, broken)


def read_thumbnails(folder: Path, samples: int) -> Thumbnails | None:
    """Read the pictures of a run; None if there are none.

    Args:
        folder: The run.
        samples: Number of embeddings.

    Raises:
        UserError: The file does not have the format that `evaluate` writes.
    """
    path = folder / "evaluation" / "thumbnails.npz"
    if (data := read_arrays(path)) is None:
        return None
    rows = _array(path, data, "rows", 1, "iu")
    if rows.min() < 0 or rows.max() >= samples:
        raise _fault(path, f"rows refer to more than the {samples} embeddings")
    student = _array(path, data, "student", 4, "u", len(rows))
    teacher = _array(path, data, "teacher", 4, "u", len(rows)) if _filled(data, "teacher") else None
    names = [str(data.get(f"{side}_modality", side)) for side in ("student", "teacher")]
    captions = _read_captions(folder / "evaluation" / "captions.json", len(rows))
    return Thumbnails(rows, student, teacher, names[0], names[1], captions)


@dataclass(frozen=True)
class Confusion:
    """`evaluation/confusion.npz`: counts over all test samples.

    Attributes:
        classes: Names of the K classes.
        roles: Counts `[K, K]` (true, predicted) by `student`, `teacher` or `baseline/NAME`, if the network has these
            classes.
    """

    classes: list[str]
    roles: Mapping[str, np.ndarray]


def read_confusion(folder: Path) -> Confusion | None:
    """Read the confusion counts of a run; None if there are none.

    Raises:
        UserError: The file does not have the format that `evaluate` writes.
    """
    path = folder / "evaluation" / "confusion.npz"
    if (data := read_arrays(path)) is None:
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
    """Spread of unit vectors `[N, D]`: 1 - |mean|^2, from 0 (all equal) to 1 (evenly distributed over the sphere)."""
    return float(1 - np.square(embeddings.mean(axis=0)).sum())


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """Read an npz file of a run; None if there is none.

    Raises:
        UserError: It is damaged.
    """
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as data:
            return dict(data)
    except Exception as error:  # zipfile raises what it likes for a damaged archive
        raise machine_fault(error, path) or _fault(path, f"not a readable npz file ({error})") from None


def _filled(data: dict[str, np.ndarray], name: str) -> bool:
    return name in data and data[name].size > 0


def _array(
    path: Path, data: dict[str, np.ndarray], name: str, axes: int, kinds: str, length: int | None = None
) -> np.ndarray:
    """The non-empty array of that name, with the given number of axes, kinds of dtype and length."""
    if name not in data:
        raise _fault(path, f"array {name!r} is missing")
    array = data[name]
    shaped = array.ndim == axes and array.size > 0 and (axes < 4 or array.shape[-1] == 3)
    if not shaped or array.dtype.kind not in kinds or (length is not None and len(array) != length):
        raise _fault(path, f"array {name!r} has the wrong type or shape: {array.dtype} {list(array.shape)}")
    return array


def _fault(path: Path, what: str) -> UserError:
    return UserError(f"{path}: {what}, unlike the files of this version. Run `wcord evaluate` again.")


def _read_captions(path: Path, pictures: int) -> dict[str, list[list[Caption]]]:
    if not path.is_file():
        return {}
    try:
        read = json.loads(path.read_bytes())
        found = {str(role): [[_caption(one) for one in several] for several in rows] for role, rows in read.items()}
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise _fault(path, f"does not contain captions ({error})") from None
    if any(len(rows) != pictures for rows in found.values()):
        raise _fault(path, f"does not contain a caption for each of {pictures} pictures")
    return found


def _caption(plain: Mapping[str, Any]) -> Caption:
    colours = tuple(str(colour) for colour in plain["colours"])
    if not all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in colours):
        raise ValueError(f"colours {colours}")
    return Caption(str(plain["text"]), colours, base64.b64decode(plain["sound"], validate=True))
