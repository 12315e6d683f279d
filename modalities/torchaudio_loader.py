"""Imports torchaudio with CPU builds of torch, where the native library of its wheel cannot be loaded."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

EXTRA = "pip install torchaudio soundfile"


def import_torchaudio() -> ModuleType:
    """Import `torchaudio`, without its native library if it cannot be loaded; the transforms do not need it.

    Call it before transformers loads an audio model, which imports torchaudio and would fail.

    Raises:
        ImportError: torchaudio is not installed. The message states the packages to install.
    """
    try:
        return importlib.import_module("torchaudio")
    except OSError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
            del sys.modules[name]
        sys.modules["torchaudio._extension"] = _without_native_library()
        return importlib.import_module("torchaudio")
    except ImportError as error:
        raise ImportError(f"audio requires torchaudio: {EXTRA} ({error})") from error


def import_soundfile() -> ModuleType:
    """Import `soundfile`.

    Raises:
        ImportError: It is not installed. The message states the packages to install.
    """
    try:
        return importlib.import_module("soundfile")
    except (ImportError, OSError) as error:
        raise ImportError(f"audio requires soundfile: {EXTRA} ({error})") from error


def _without_native_library() -> ModuleType:
    def missing(function: Callable[..., Any]) -> Callable[..., Any]:
        def fail(*_: Any, **__: Any) -> None:
            raise RuntimeError(f"{function.__name__} requires the native library of torchaudio, which cannot be loaded")

        return fail

    module: Any = ModuleType("torchaudio._extension")
    module._IS_TORCHAUDIO_EXT_AVAILABLE = module._IS_ALIGN_AVAILABLE = False
    module.fail_if_no_align = missing
    module._check_cuda_version = lambda: None
    return module
