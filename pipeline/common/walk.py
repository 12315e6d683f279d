"""Walks the files in a folder, following links."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from pipeline.common.file_names import left_by


def files_under(folder: Path, above: Collection[str] = (), left: Counter[str] | None = None) -> Iterator[Path]:
    """Yield every file in sorted order, with only one folder at a time in memory.

    Hidden files and operating-system files (`Thumbs.db`, …) are skipped.

    Links to folders are followed, except those to a folder that contains them. A folder that does not exist has no
    files.

    Args:
        folder: The folder.
        above: Real paths of the folders that contain it, for the recursion.
        left: Counts the skipped operating-system files and folders, by `left_by`.

    Raises:
        OSError: A folder cannot be read.
    """
    real = os.path.realpath(folder)
    if real in above or not folder.is_dir():
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if (kind := left_by(entry.name)) is not None:
            if left is not None:
                left[kind] += 1
            continue
        if entry.name.startswith("."):
            continue
        if os.path.isdir(entry) if entry.is_symlink() else entry.is_dir():  # noqa: PTH112 - False for circular links
            yield from files_under(folder / entry.name, (*above, real), left)
        else:
            yield folder / entry.name
