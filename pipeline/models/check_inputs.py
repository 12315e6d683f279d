"""Checks that the dataset has the fields that the networks read, before any network is built."""

from __future__ import annotations

from collections.abc import Iterator

from modalities.base import Modality
from pipeline.common.errors import UserError
from pipeline.config.settings import Config
from pipeline.data.source import OpenDataset
from pipeline.models.input_modalities import student_modalities, teacher_modalities


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
    for role, modality in _modalities(config):
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


def _modalities(config: Config) -> Iterator[tuple[str, Modality]]:
    """The role and modality of each network, if it is known without building the network."""
    yield from (("student", modality) for modality in student_modalities(config))
    if config.teacher is not None and config.teacher.named_cache is None:  # a cache does not need the teacher's fields
        yield from ((f"teacher ({run})" if run else "teacher", m) for run, m in teacher_modalities(config))
