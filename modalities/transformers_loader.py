"""Imports transformers so that an installed torchaudio does not break it beside a CPU build of torch."""

from __future__ import annotations

import importlib
from contextlib import suppress
from typing import Any

from modalities.torchaudio_loader import import_torchaudio


def import_transformers() -> Any:
    """Import `transformers`. Its models import torchaudio where that is installed, which then has to load."""
    with suppress(ImportError):
        import_torchaudio()
    return importlib.import_module("transformers")
