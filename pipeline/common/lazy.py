"""Lazy imports: names of a package are imported when they are first used, which makes `import` fast."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def hand_on(package: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Make the module-level `__getattr__` (PEP 562) of a package.

    Args:
        package: Dotted name of the package.
        names: Public name -> module of the package that defines it.

    Returns:
        A function that imports the module and returns the name.
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{names[name]}"), name)

    return get
