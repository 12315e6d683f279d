"""The modalities that the networks of a config read, without building the networks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import modalities
from modalities.base import Modality
from pipeline.common.errors import UserError
from pipeline.config.settings import Config
from pipeline.models.description import inside, part_of, read_description
from pipeline.models.hub_student import student_folder


def student_modalities(config: Config) -> Iterator[Modality]:
    """The modalities of the student. Those that cannot be built are omitted: building the network reports why."""
    yield from _built(config.student.modality)


def teacher_modalities(config: Config) -> Iterator[tuple[str, Modality]]:
    """The modalities of the teacher, each with the run that it is from; "" for a pretrained network.

    Those that are not known, as of a run that does not exist, are omitted: loading the network reports why.
    """
    teacher = config.teacher
    if teacher is None:
        return
    if teacher.modality is not None:
        yield from (("", modality) for modality in _built(teacher.modality))
    for run in [teacher.run] if isinstance(teacher.run, str) else teacher.run or []:
        try:
            specs = list(_described(student_folder(run)))
        except (UserError, ValueError, KeyError, AttributeError, TypeError):
            continue
        yield from ((run, modality) for modality in _built(specs))


def _described(folder: Path) -> Iterator[dict[str, Any]]:
    """The settings of the modalities in the description of a network."""
    spec = read_description(folder)
    if "networks" in spec:
        for part in spec["networks"]:
            yield from _described(part_of(folder, part))
    else:
        yield {key: inside(folder, value) for key, value in spec["modality"].items()}


def _built(specs: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Iterator[Modality]:
    for spec in [specs] if isinstance(specs, Mapping) else specs:
        with suppress(ValueError, ImportError, TypeError):
            yield modalities.get(spec["name"])(**{key: value for key, value in spec.items() if key != "name"})
