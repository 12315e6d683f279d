"""The format number of run folders, stored in `config.yaml`, in checkpoints and in `network.json`."""

from __future__ import annotations

from pipeline.common.errors import UserError

FORMAT = 1
"""Increase it if this version misreads, or can no longer read, what another version writes."""


def check_format(number: object, where: object) -> None:
    """Check that this version can read a format.

    Args:
        number: The format; None for files written before formats were numbered.
        where: The file or folder, for the message.

    Raises:
        UserError: This version cannot read it. The message explains how to fix this.
    """
    if number is None or number == FORMAT:
        return
    if isinstance(number, int) and number > FORMAT:
        raise UserError(
            f"{where}: written in format {number} by a newer version of wcord; this version reads format {FORMAT}. "
            "Update: pip install --upgrade wcord."
        )
    raise UserError(
        f"{where}: written in format {number} by an older version of wcord; this version reads format {FORMAT}. "
        "Export the student with that version (`wcord export`; see the first line of config.yaml), or train again."
    )
