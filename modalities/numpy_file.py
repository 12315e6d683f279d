"""Reads an array from the bytes of a `.npy` file, or of an `.npz` file with one array."""

from __future__ import annotations

import io
import zipfile
from typing import IO

import numpy as np

ARCHIVE = b"PK\x03\x04"
MOST_BYTES = 128_000_000
"""Upper limit on the bytes of a map, of points, and of an array in an archive: a few kilobytes can unpack to
gigabytes."""


def read_array(data: bytes | IO[bytes]) -> np.ndarray:
    """Read the array of a `.npy` file, given as bytes or as an open file.

    Raises:
        ValueError: It is not a complete `.npy` file. Pickles and archives are rejected.
    """
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    try:
        array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
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
    if len(data) > MOST_BYTES:
        raise ValueError(
            f"a map of {len(data)} bytes; at most {MOST_BYTES} are accepted: save it at a lower resolution"
        )
    array = _only_array(data) if data.startswith(ARCHIVE) else read_array(data)
    return array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array


def open_member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Open a member of an archive, which is decompressed while it is read.

    Raises:
        ValueError: It unpacks to more than MOST_BYTES.
    """
    if archive.getinfo(name).file_size > MOST_BYTES:
        raise ValueError(f"{name} unpacks to more than {MOST_BYTES} bytes")
    return archive.open(name)


def _only_array(data: bytes) -> np.ndarray:
    """The array in an archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            if len(names) != 1:
                raise ValueError(
                    f"it has {len(names)} arrays ({', '.join(names[:4])}); save only the depth map in the archive"
                )
            with open_member(archive, names[0]) as file:
                return read_array(file)
    except Exception as error:  # zipfile raises any error for a damaged archive
        raise ValueError(f"not an archive with one NumPy array: {error}") from None
