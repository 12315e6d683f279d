"""Every public name says what it is; the API page shows these words."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import losses
import modalities
import pipeline
import wcord


def modules(package: ModuleType) -> Iterator[ModuleType]:
    yield package
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not found.name.endswith("__main__") and not found.name.startswith("pipeline.export.portable."):  # scripts
            yield importlib.import_module(found.name)


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """The module, its classes and functions, and what these classes define; what overrides may inherit its words."""
    yield module.__name__, module
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", "") != module.__name__ or not callable(value):
            continue
        if inspect.isclass(value) or inspect.isfunction(value):
            yield f"{module.__name__}.{name}", value
        if inspect.isclass(value):
            for own, member in vars(value).items():
                kinds = (property, classmethod, staticmethod)
                if not own.startswith("_") and (inspect.isfunction(member) or isinstance(member, kinds)):
                    yield f"{module.__name__}.{name}.{own}", getattr(value, own)


def words(value: Any) -> str:
    """A class says it itself, and dataclasses say nothing by listing their fields; a method may inherit it."""
    own = value.__dict__.get("__doc__") if inspect.isclass(value) else inspect.getdoc(value)
    return "" if inspect.isclass(value) and str(own).startswith(f"{value.__name__}(") else own or ""


@pytest.mark.parametrize("package", [losses, modalities, pipeline, wcord], ids=lambda package: package.__name__)
def test_every_public_name_says_what_it_is(package: ModuleType) -> None:
    assert [name for module in modules(package) for name, value in public(module) if not words(value)] == []
