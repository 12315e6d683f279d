"""Initialises a student with the encoder of a completed run, e.g. a depth student with that of its RGB teacher."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import Tensor

from modalities.encoders.library import fold_channels
from modalities.encoders.lora import plain_names
from pipeline.common.errors import UserError
from pipeline.models.network import Joint, Network, load_network

log = logging.getLogger(__name__)

NORMALISATION = "mean", "std"
"""Buffers of an encoder that depend on its modality."""


def initialise(student: Network | Joint, run: str) -> None:
    """Copy the encoder weights of a completed run into a student. The head keeps its random weights.

    If the numbers of input channels differ, the first convolution is adapted with `fold_channels`.

    Args:
        student: The student, changed in place.
        run: Run folder.

    Raises:
        UserError: The run has no network, or its encoder has another architecture than the student's.
    """
    source = load_network(Path(run) / "student")
    if isinstance(student, Joint) or isinstance(source, Joint):
        raise UserError("student.init_from: both the student and the run must have a single encoder.")
    given, names, inside = source.encoder.state_dict(), plain_names(student.encoder), student.encoder.state_dict()
    own = {plain: inside[name] for plain, name in names.items()}
    for name in NORMALISATION:
        given.pop(name, None), own.pop(name, None)
    channels = source.encoder.mean.shape[1], student.encoder.mean.shape[1]
    adapted = [name for name in own if name in given and _reads(given[name], own[name], *channels)]
    if len(adapted) == 1:
        given[adapted[0]] = fold_channels(given[adapted[0]], channels[1])
    wrong = sorted(given.keys() ^ own.keys()) or [name for name in own if given[name].shape != own[name].shape]
    if wrong:
        raise UserError(
            f"student.init_from: the encoder of {run} ({source.spec['encoder']}) does not match that of the student "
            f"({student.spec['encoder']}): {len(wrong)} tensors differ, such as {wrong[0]}. Use the same encoder with "
            "the same settings."
        )
    student.encoder.load_state_dict({names[plain]: value for plain, value in given.items()}, strict=False)
    log.info(f"student: initialised with the encoder of {run}{f', {adapted[0]} adapted' if adapted else ''}")


def _reads(given: Tensor, own: Tensor, source: int, channels: int) -> bool:
    """Whether a weight belongs to the convolution on the input, and the number of input channels differs."""
    alike = given.ndim == own.ndim > 2 and given.shape[0] == own.shape[0] and given.shape[2:] == own.shape[2:]
    return alike and source != channels and (given.shape[1], own.shape[1]) == (source, channels)
