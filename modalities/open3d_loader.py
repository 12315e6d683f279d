"""Imports Open3D on systems without libusb, which its wheel requires."""

from __future__ import annotations

import ctypes
import importlib
from contextlib import suppress
from types import ModuleType


def import_open3d() -> ModuleType:
    """Import `open3d`, with the libusb of the `libusb-package` wheel if it is installed.

    Raises:
        ImportError: The system lacks a library that Open3D loads. The message states what to install.
    """
    # Without libusb-package, the system may provide the library. If not, the import below fails with its name.
    with suppress(ImportError, OSError):
        path = importlib.import_module("libusb_package").get_library_path()
        if path is not None:
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    try:
        return importlib.import_module("open3d")
    except (ImportError, OSError) as error:
        raise ImportError(
            f"cannot load Open3D: {error}. Install it with `pip install open3d-cpu libusb-package` "
            "(Linux x86-64; `open3d` elsewhere). If a library such as libGL.so.1 is missing, install the system "
            "packages libgl1 libegl1 libx11-6 (Debian and Ubuntu: `apt-get install libgl1 libegl1 libx11-6`)."
        ) from error
