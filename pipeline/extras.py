"""Packages that only some commands need."""

from __future__ import annotations

import importlib
from typing import Any

from pipeline.errors import UserError


def need(module: str, extra: str) -> Any:
    """Import a package of an extra; UserError says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{module} is needed for this: pip install 'wcord[{extra}]' ({error})") from None
