"""Imports Open3D where only pip has been at work: its wheel needs a libusb that a bare Linux system lacks."""

from __future__ import annotations

import ctypes
import importlib
from contextlib import suppress
from types import ModuleType


def import_open3d() -> ModuleType:
    """Import `open3d`, with the libusb of the `libusb-package` wheel when that is installed.

    Raises ImportError, with what to install, where the system lacks a library that Open3D loads.
    """
    # Without libusb-package the system may have the library itself: then the import below says what is missing.
    with suppress(ImportError, OSError):
        path = importlib.import_module("libusb_package").get_library_path()
        if path is not None:
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    try:
        return importlib.import_module("open3d")
    except (ImportError, OSError) as error:
        raise ImportError(
            f"Open3D does not load here: {error}. Install it with `pip install open3d-cpu libusb-package` "
            "(Linux x86-64; `open3d` elsewhere). If a library such as libGL.so.1 is missing, install the system "
            "packages libgl1 libegl1 libx11-6 (Debian and Ubuntu: `apt-get install libgl1 libegl1 libx11-6`)."
        ) from error
