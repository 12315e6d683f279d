"""Data, training, evaluation and the command line; `pipeline.load(RUN)` gives a finished student."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.host import wait_without_spinning

if TYPE_CHECKING:
    from pipeline.student import Student

wait_without_spinning()  # here, because it must come before the first import of torch


def load(run: str | Path) -> Student:
    """A student by its run folder, by the `student` folder in it, or by what `wcord export` wrote.

    Raises UserError for a folder without a finished network.
    """
    from pipeline.student import load as load_student

    return load_student(run)
