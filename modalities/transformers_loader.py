"""Imports transformers such that an installed torchaudio does not break it with CPU builds of torch."""

from __future__ import annotations

import importlib
from contextlib import suppress
from typing import Any

from modalities.torchaudio_loader import import_torchaudio


def import_transformers() -> Any:
    """Import `transformers`, after torchaudio, which some of its models import."""
    with suppress(ImportError):
        import_torchaudio()
    return importlib.import_module("transformers")
