"""Puts the working folder last in the search path of Python modules."""

from __future__ import annotations

import sys
from pathlib import Path

PACKAGES = Path(__file__).resolve().parents[2]
"""The folder that contains the packages of this program."""


def search_last() -> None:
    """Move the working folder to the end of `sys.path`, even if `python -m` put it first.

    Classes that a config specifies as `package.module:Class` are still found there, but files next to the user's data
    cannot shadow modules of this program or of a library. Child processes inherit the order. If the working folder is a
    checkout of this program, nothing changes.
    """
    folder = Path.cwd()
    if folder == PACKAGES:
        return
    sys.path[:] = [*(entry for entry in sys.path if Path(entry).resolve() != folder), str(folder)]
