"""Reports a dataset folder that does not exist without importing torch, which takes seconds."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.data.settings import SourceSettings


def check_folders(sources: Iterable[SourceSettings]) -> None:
    """Check that datasets that are named as local folders exist. URLs, patterns and files are checked when opened.

    Args:
        sources: The datasets of a config.

    Raises:
        UserError: A folder does not exist.
    """
    for source in sources:
        if _is_missing_folder(source.path):
            raise not_found(source.path, Path(source.path) / "dataset.json")


def _is_missing_folder(path: str) -> bool:
    if not re.fullmatch(r"[\w./~ -]+", path) or path.endswith((".tar", ".json")):
        return False
    try:
        Path(path).stat()
    except OSError as error:  # other errors are reported when the dataset is opened
        return isinstance(error, (FileNotFoundError, NotADirectoryError))
    return False


def not_found(folder: str | Path, manifest: Path) -> UserError:
    """The error for a folder without a dataset.

    Args:
        folder: The folder, as in the config.
        manifest: Path of its missing `dataset.json`.
    """
    return UserError(
        f"{manifest}: not found. Either {folder} is not a packed dataset, or packing was interrupted. In the latter "
        "case, run the same `wcord pack` command again; it resumes."
    )
