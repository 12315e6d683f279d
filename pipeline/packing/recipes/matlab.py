"""Reads variables from MATLAB files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.common.errors import UserError


def read_matlab(path: Path, name: str) -> np.ndarray:
    """Read one variable of a `.mat` file up to version 7.

    Args:
        path: The file.
        name: Name of the variable.

    Raises:
        UserError: The file or the variable is missing.
    """
    from scipy.io import loadmat

    try:
        found: np.ndarray = loadmat(str(path))[name]
    except (OSError, KeyError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"{path}: cannot read the variable `{name}` ({error}). This file is part of the dataset; extract the "
            "archive again."
        ) from None
    return found
