"""Optional packages that only some commands need."""

from __future__ import annotations

import importlib
from typing import Any

from pipeline.common.errors import UserError


def require_package(module: str, extra: str) -> Any:
    """Import an optional package.

    Args:
        module: Dotted name of the module.
        extra: The extra of wcord that installs it, e.g. `export`.

    Raises:
        UserError: The package is not installed. The message contains the pip command.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"this requires {module}: pip install 'wcord[{extra}]' ({error})") from None
