"""The built-in losses, modalities and encoders without torch, which takes seconds to import.

Their modules run as they are, except that they get stand-ins instead of libraries such as torch and numpy. Their
classes have the signatures, annotations, defaults and docstrings of the real classes; their methods cannot be called.
"""

from __future__ import annotations

import builtins
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import PathFinder
from typing import Any

PACKAGES = ("losses", "modalities")
REAL = {*sys.stdlib_module_names, "annotated_types", "pydantic", "typing_extensions"}
PREFIX = "outline:"
"""Of the names of outlines in `sys.modules`, where dataclasses and type hints look up the module of a class."""


def outline(name: str) -> Any:
    """Load a module of `losses` or `modalities` with stand-ins instead of libraries.

    Args:
        name: Name of the module, e.g. `losses.wcord`.

    Returns:
        A module. That of the same name which `import` loads is a different one.
    """
    assert name.partition(".")[0] in PACKAGES, name
    parent, _, last = name.rpartition(".")
    package = outline(parent) if parent else None
    if PREFIX + name in sys.modules:
        return sys.modules[PREFIX + name]
    source: Any = PathFinder.find_spec(name, package.__path__) if package else importlib.util.find_spec(name)
    spec: Any = importlib.util.spec_from_file_location(
        PREFIX + name, source.origin, submodule_search_locations=source.submodule_search_locations
    )
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    vars(module)["__builtins__"] = vars(builtins) | {"__import__": _import}
    spec.loader.exec_module(module)
    if package:
        setattr(package, last, module)
    return module


def _import(
    name: str,
    globals: Mapping[str, object] | None = None,
    locals: Mapping[str, object] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> Any:
    """Import as the modules of the built-in classes see it."""
    top = name.partition(".")[0]
    if top in REAL:
        return builtins.__import__(name, globals, locals, fromlist or (), level)
    if top not in PACKAGES:
        return _StandIn()
    module = outline(name)
    for part in fromlist or ():
        if not hasattr(module, part):
            outline(f"{name}.{part}")
    return module if fromlist else outline(top)


class _StandIn:
    """Anything of a library. Its attributes, results and items are stand-ins; as a base class, it is nothing."""

    def __getattr__(self, name: str) -> _StandIn:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *_: Any, **__: Any) -> _StandIn:
        return self

    def __mro_entries__(self, _: tuple[Any, ...]) -> tuple[type, ...]:
        return ()

    __getitem__ = __or__ = __ror__ = __call__
    __iter__ = None  # otherwise, a loop over items would never end
