"""Reads an array from the bytes of a `.npy` file."""

from __future__ import annotations

import io

import numpy as np


def read_array(data: bytes) -> np.ndarray:
    """Read the array of a `.npy` file.

    Raises:
        ValueError: It is not a complete `.npy` file. Pickles and archives are rejected.
    """
    try:
        if not data.startswith(b"\x93NUMPY"):
            raise ValueError(f"it begins with {data[:8]!r}")
        array: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # a damaged header can raise any error of Python's parser
        raise ValueError(f"not a complete NumPy array: {error}") from None
    return array
