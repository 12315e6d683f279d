"""The files under a folder of a person's own, wherever its links lead."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path


def files_under(folder: Path, above: Collection[str] = ()) -> Iterator[Path]:
    """Every file, as sorting the paths would have it, but with one folder at a time in memory; hidden ones are no data.

    Links to folders are followed, unless to one of those that they lie in. above: the real paths of these.
    Raises OSError for a folder that may not be read; one that is not there has no files.
    """
    real = os.path.realpath(folder)
    if real in above or not folder.is_dir():
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if os.path.isdir(entry) if entry.is_symlink() else entry.is_dir():  # noqa: PTH112 - a link in circles is no folder
            yield from files_under(folder / entry.name, (*above, real))
        else:
            yield folder / entry.name
