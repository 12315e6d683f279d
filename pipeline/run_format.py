"""The format of run folders: its number stands in a run's `config.yaml`, in its checkpoints and in `network.json`."""

from __future__ import annotations

from pipeline.errors import UserError

FORMAT = 1
"""To be raised when a later version writes what this one would misread, or cannot read any more what it writes."""


def check_format(number: object, where: object) -> None:
    """Raises UserError, with what to do, for what this version cannot read. None: written before there were numbers."""
    if number is None or number == FORMAT:
        return
    if isinstance(number, int) and number > FORMAT:
        raise UserError(
            f"{where}: written in format {number} by a newer version of wcord, and this one reads format {FORMAT}. "
            "Update it: pip install --upgrade wcord."
        )
    raise UserError(
        f"{where}: written in format {number} by an older version of wcord, and this one reads format {FORMAT}. Take "
        "the student away with that version (`wcord export`; config.yaml names it in its first line), or train again."
    )
