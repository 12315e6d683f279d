"""Variables out of MATLAB's files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.errors import UserError


def read_matlab(path: Path, name: str) -> np.ndarray:
    """One variable of a `.mat` file up to version 7. Raises UserError for a file without it."""
    from scipy.io import loadmat

    try:
        found: np.ndarray = loadmat(str(path))[name]
    except (OSError, KeyError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path}: no `{name}` can be read from it ({error}); it is part of the set.") from None
    return found
