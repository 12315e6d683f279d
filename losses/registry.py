"""Finds losses, modalities and encoders by a known name or by `package.module:Class`."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any, TypeVar, cast

Class = TypeVar("Class", bound=type)


def find(name: str, known: Mapping[str, Class], base: Class, kind: str) -> Class:
    """Find a class by name.

    Args:
        name: A name in `known`, or `package.module:Class`.
        known: Name -> class.
        base: Required base class.
        kind: What the class is, for the message.

    Raises:
        ValueError: The name is unknown or cannot be imported. The message lists the known names and suggests the
            closest.
    """
    if name in known:
        return known[name]
    if ":" in name:
        return import_class(name, base)
    raise ValueError(f"{kind}: there is no {name!r}{near(name, known)}; for your own class, use package.module:Class")


def import_object(path: str) -> Any:
    """Import `package.module:name`; the name may be dotted, e.g. `package.module:Class.method`.

    Raises:
        ValueError: The module or the name is missing.
    """
    module, _, name = path.partition(":")
    try:
        return attrgetter(name)(importlib.import_module(module))
    except ImportError as error:
        raise ValueError(f"{path}: cannot import {module} ({error}); add its folder to PYTHONPATH") from error
    except AttributeError:
        raise ValueError(f"{path}: module {module} has no {name!r}") from None


def import_class(path: str, base: Class) -> Class:
    """Import `package.module:Class`, a subclass of `base`.

    Raises:
        ValueError: The module or the class is missing, or it is not a subclass.
    """
    found = import_object(path)
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise ValueError(f"{path}: is not a subclass of {base.__module__}.{base.__name__}")
    return cast(Class, found)


def near(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the closest match, if any, and all known names."""
    known = list(known)
    guess = difflib.get_close_matches(name, known, n=1)
    start = f", did you mean {guess[0]!r}? There are" if guess else "; there are"
    return f"{start}: {', '.join(sorted(known)) or 'none'}"
