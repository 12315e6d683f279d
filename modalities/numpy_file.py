"""Reads an array from the bytes of a `.npy` file, or of an `.npz` file with one array."""

from __future__ import annotations

import io
import zipfile

import numpy as np

ARCHIVE = b"PK\x03\x04"
MOST_BYTES = 1_000_000_000
"""Upper limit on the bytes of an array in an archive: a few kilobytes can unpack to gigabytes."""


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


def read_map(data: bytes) -> np.ndarray:
    """Read a map `[H, W]`. A last dimension of 1 is dropped.

    Args:
        data: The bytes of a `.npy` file, or of an `.npz` file with one array.

    Raises:
        ValueError: It is not a complete file of this kind, or has several arrays. Pickles are rejected.
    """
    array = read_array(_only_array(data) if data.startswith(ARCHIVE) else data)
    return array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array


def _only_array(data: bytes) -> bytes:
    """The `.npy` file in an archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            if len(names) != 1:
                raise ValueError(
                    f"it has {len(names)} arrays ({', '.join(names[:4])}); save only the depth map in the archive"
                )
            if archive.getinfo(names[0]).file_size > MOST_BYTES:
                raise ValueError(f"{names[0]} unpacks to more than {MOST_BYTES} bytes")
            return archive.read(names[0])
    except Exception as error:  # zipfile raises any error for a damaged archive
        raise ValueError(f"not an archive with one NumPy array: {error}") from None
