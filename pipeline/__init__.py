"""Implementation of wcord: data, training, evaluation, export, command line. Users import `wcord`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common.host import wait_without_spinning

if TYPE_CHECKING:
    from pipeline.inference.student import Student

wait_without_spinning()  # must be called before torch is first imported


def load(run: str | Path) -> Student:
    """Load a student.

    Args:
        run: A run folder, the `student` folder in it, a folder that `wcord export` wrote, or the name of such a folder
            on the Hugging Face Hub: `you/name` or `you/name@revision`.

    Returns:
        The student.

    Raises:
        UserError: The folder does not contain a finished network, or the Hub has none or cannot be reached.
    """
    from pipeline.inference.student import load as load_student

    return load_student(run)
