"""A NumPy array out of the bytes of a `.npy` file."""

from __future__ import annotations

import io

import numpy as np


def read_array(data: bytes) -> np.ndarray:
    """The array of a `.npy`; ValueError for anything else: pickles, archives, what is cut short or damaged."""
    try:
        if not data.startswith(b"\x93NUMPY"):
            raise ValueError(f"it begins with {data[:8]!r}")
        array: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # NumPy lets through what Python's parser raises for a damaged header, of any type
        raise ValueError(f"not a whole NumPy array: {error}") from None
    return array
