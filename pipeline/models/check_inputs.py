"""Checks that the dataset has the fields that the networks read, before any network is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import modalities
from modalities.base import Modality
from pipeline.common.errors import UserError
from pipeline.config.settings import Config
from pipeline.data.source import OpenDataset
from pipeline.models.description import read_description
from pipeline.models.hub_student import student_folder


def check_inputs(config: Config, data: OpenDataset) -> None:
    """Compare the inputs of student and teacher with the fields of the samples.

    Args:
        config: Config of the run.
        data: Its dataset.

    Raises:
        UserError: No sample has the input of a network. The message lists the fields of the samples.
    """
    manifests = (data.manifest, *(manifest for _, manifest in data.others))
    held = {member: count for manifest in manifests for member, count in manifest.fields.items() if count}
    if not held:  # the manifest does not list fields
        return
    for role, modality in modalities_of(config):
        if not held.keys() & set(modality.members):
            read = " or ".join(modality.members)
            called = {own: f"{name}, named {own} here" for name, own in data.manifest.names.items()}
            found = "; ".join(f"{called.get(member, member)} ({held[member]})" for member in sorted(held))
            cure = (
                f"set the extension in data.fields, e.g. data.fields={{{modality.name}: EXTENSION}}"
                if data.manifest.extensions
                else f"pack the data with the field `{modality.name}`"
            )
            raise UserError(
                f"{role}: the modality `{modality.name}` reads {read}, but no sample of {data.folder} has it. The "
                f"samples contain: {found}. Choose another modality, {cure}, or set data.join to a dataset that has it."
            )


def modalities_of(config: Config) -> Iterator[tuple[str, Modality]]:
    """The role and modality of each network, if it is known without building the network."""
    yield from (("student", modality) for modality in _built(config.student.modality))
    teacher = config.teacher
    if teacher is None or teacher.cache is not None:  # a cache does not need the teacher's fields in the data
        return
    if teacher.modality is not None:
        yield from (("teacher", modality) for modality in _built(teacher.modality))
    for run in [teacher.run] if isinstance(teacher.run, str) else teacher.run or []:
        try:
            spec = read_description(student_folder(run))["modality"]
        except (UserError, ValueError, KeyError):  # loading it later raises a clear error
            continue
        yield from ((f"teacher ({run})", modality) for modality in _built(spec))


def _built(specs: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Iterator[Modality]:
    for spec in [specs] if isinstance(specs, Mapping) else specs:
        with suppress(ValueError, ImportError, TypeError):  # building it later raises a clear error
            yield modalities.get(spec["name"])(**{key: value for key, value in spec.items() if key != "name"})
