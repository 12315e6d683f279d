"""Cross-modal search: query an index with a file in the student's or the teacher's modality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from modalities import Text
from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.data.views import View
from pipeline.evaluate.shared_space import load_space
from pipeline.inference.faiss_index import Hit, open_index, unit
from pipeline.inference.inputs import look_at
from pipeline.inference.student import Student
from pipeline.models.build import build_teacher
from pipeline.models.description import SPACE
from pipeline.models.hub_student import student_folder
from pipeline.models.network import load_network

Role = Literal["student", "teacher"]


@dataclass(frozen=True)
class Side:
    """Student or teacher of a run.

    Attributes:
        network: The network.
        shared: Maps the network's features `[N, D]` to unit vectors in the shared space.
    """

    network: Student
    shared: Callable[[np.ndarray], np.ndarray]

    @property
    def view(self) -> View | None:
        """The network's view; None if it reads several modalities, so a single file is not enough."""
        view = self.network.network.view
        return view if isinstance(view, View) else None

    @property
    def sees(self) -> str:
        """The name of the network's modality; all names if it reads several."""
        view = self.network.network.view
        return " and ".join(v.modality.name for v in ((view,) if isinstance(view, View) else view))


def sides(run: Path) -> dict[Role, Side]:
    """Load the student of a run and, if it has one, the teacher.

    Raises:
        UserError: A network is missing, or the run has a teacher but has not been evaluated.
    """
    folder = student_folder(run)
    student, space = Student(load_network(folder)), load_space(folder)
    config = configs.load(run / "config.yaml") if (run / "config.yaml").is_file() else None
    teacher = build_teacher(config) if config is not None else None
    if space is None:
        if teacher is not None:
            raise UserError(f"{run}: the shared space of student and teacher is missing; run `wcord evaluate {run}`.")
        return {"student": Side(student, unit)}
    dims = student.network.dims.pooled, teacher.dims.pooled if teacher is not None else space.weights.shape[1]
    if space.weights.shape != dims:
        raise UserError(f"{folder / SPACE}: does not match the networks of this run; run `wcord evaluate {run}` again.")
    own: dict[Role, Side] = {"student": Side(student, lambda x: unit(space.of_student(x)))}
    if teacher is not None:
        own["teacher"] = Side(Student(teacher), lambda x: unit(space.of_teacher(x)))
    return own


def search(folder: Path, modality: str, query: str, count: int) -> list[Hit]:
    """Find the samples of an index that are nearest to a query.

    Args:
        folder: The index.
        modality: Name of the modality of the query.
        query: Path of a file or, for text, the sentence itself.
        count: Number of results.

    Raises:
        UserError: Neither network of the run reads this modality, or the file cannot be read.
    """
    index = open_index(folder)
    own = sides(Path(index.about["run"]))
    side = next((side for side in own.values() if side.view is not None and side.sees == modality), None)
    if side is None or side.view is None:
        known = " or ".join(sorted({f"--{side.sees}" for side in own.values() if side.view is not None})) or "nothing"
        raise UserError(f"--{modality}: no network of {index.about['run']} reads this modality; use {known}.")
    try:
        data = query.encode() if isinstance(side.view.modality, Text) else Path(query).read_bytes()
        vector = ask(side, data)
    except OSError as error:
        raise UserError(f"{query}: {error.strerror}. Pass a {modality} file.") from None
    except ValueError as error:
        raise UserError(f"{query}: {error}. Pass a {modality} file.") from None
    if index.vectors.d != vector.shape[1]:
        raise UserError(
            f"{folder}: the index contains {index.vectors.d}-dimensional vectors, but the run produces "
            f"{vector.shape[1]}-dimensional ones. Rebuild the index: `wcord embed {index.about['run']} DATA --index "
            f"{folder}`."
        )
    return index.search(vector, count)[0]


def ask(side: Side, data: bytes) -> np.ndarray:
    """Embed the bytes of one file as a unit vector `[1, D]` in the shared space.

    Raises:
        ValueError: The bytes are not valid for the modality.
    """
    assert side.view is not None
    features = side.network.features([look_at(side.view, data)])
    return side.shared(features.pooled.float().cpu().numpy())
