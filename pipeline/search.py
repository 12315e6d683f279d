"""Search across modalities: student and teacher of a run in one space, asked by a file of either's modality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from modalities import Text
from pipeline import config as configs
from pipeline.errors import UserError
from pipeline.index import Hit, open_index, unit
from pipeline.inputs import look_at
from pipeline.model import build_teacher
from pipeline.network import load_network
from pipeline.prepare import View
from pipeline.space import load_space
from pipeline.student import Student, network_folder

Role = Literal["student", "teacher"]


@dataclass(frozen=True)
class Side:
    """Student or teacher of a run. shared: its features `[N, D]` to unit vectors in the space of both."""

    network: Student
    shared: Callable[[np.ndarray], np.ndarray]

    @property
    def view(self) -> View | None:
        """What it sees; None if it sees several modalities, of which a single file is not enough."""
        view = self.network.network.view
        return view if isinstance(view, View) else None

    @property
    def sees(self) -> str:
        """Its modality by name; of several, all."""
        view = self.network.network.view
        return " and ".join(v.modality.name for v in ((view,) if isinstance(view, View) else view))


def sides(run: Path) -> dict[Role, Side]:
    """The student of a run and, where there is one, its teacher.

    Raises UserError if one of them is no longer there, or if nobody has measured how they compare.
    """
    folder = network_folder(run)
    student, space = Student(load_network(folder)), load_space(folder)
    config = configs.load(run / "config.yaml") if (run / "config.yaml").is_file() else None
    teacher = build_teacher(config) if config is not None else None
    if space is None:
        if teacher is not None:
            raise UserError(f"{run}: how student and teacher compare is not known yet; run `wcord evaluate {run}`.")
        return {"student": Side(student, unit)}
    own: dict[Role, Side] = {"student": Side(student, lambda x: unit(space.of_student(x)))}
    if teacher is not None:
        own["teacher"] = Side(Student(teacher), lambda x: unit(space.of_teacher(x)))
    return own


def search(folder: Path, modality: str, query: str, count: int) -> list[Hit]:
    """The samples of an index that are nearest to a query: the path of a file, or of text the sentence itself.

    Raises UserError for a modality that neither side of the index's run sees, and for a file that cannot be read.
    """
    index = open_index(folder)
    own = sides(Path(index.about["run"]))
    side = next((side for side in own.values() if side.view is not None and side.sees == modality), None)
    if side is None or side.view is None:
        known = " or ".join(sorted({f"--{side.sees}" for side in own.values() if side.view is not None})) or "nothing"
        raise UserError(f"--{modality}: neither side of {index.about['run']} sees that; ask by {known}.")
    try:
        data = query.encode() if isinstance(side.view.modality, Text) else Path(query).read_bytes()
        vector = ask(side, data)
    except OSError as error:
        raise UserError(f"{query}: {error.strerror}. Give a {modality} file.") from None
    except ValueError as error:
        raise UserError(f"{query}: {error}. Give a {modality} file.") from None
    return index.search(vector, count)[0]


def ask(side: Side, data: bytes) -> np.ndarray:
    """The unit vector `[1, D]` of one file's bytes; ValueError, in words, for bytes of another kind."""
    assert side.view is not None
    features = side.network.features([look_at(side.view, data)])
    return side.shared(features.pooled.float().cpu().numpy())
