"""Outlines of the built-in components: what configs are checked against is what the imported classes say."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import TypeAdapter
from typing_extensions import TypedDict

import losses
import modalities
from pipeline.config.components import parameters
from pipeline.config.docstrings import read_docstring
from pipeline.config.outline import outline


def components(losses: Any, modalities: Any) -> Iterator[tuple[str, type, bool]]:
    """Name, class, and whether only its keyword-only parameters are settings."""
    for name, loss in losses.LOSSES.items():
        yield f"losses.{name}", loss, True
    for name, modality in modalities.MODALITIES.items():
        yield f"modality.{name}", modality, False
        for encoder, kind in modality.encoders.items():
            yield f"{name}.{encoder}", kind, True


IMPORTED = list(components(losses, modalities))
OUTLINES = list(components(outline("losses"), outline("modalities")))


def plain(cls: type, keyword_only: bool) -> Any:
    """The types of the settings of a class, in a form that does not depend on the identity of classes."""
    fields = parameters(cls, keyword_only=keyword_only)
    return TypeAdapter(TypedDict("Settings", fields)).json_schema()  # type: ignore[operator]


def test_the_built_in_components_are_the_same_in_the_same_order() -> None:
    assert [name for name, *_ in OUTLINES] == [name for name, *_ in IMPORTED]


@pytest.mark.parametrize(("name", "imported", "keyword_only"), IMPORTED, ids=[name for name, *_ in IMPORTED])
def test_an_outline_says_what_the_imported_class_says(name: str, imported: type, keyword_only: bool) -> None:
    found = next(cls for at, cls, _ in OUTLINES if at == name)
    assert found is not imported
    assert inspect.signature(found) == inspect.signature(imported)
    assert plain(found, keyword_only) == plain(imported, keyword_only)
    assert read_docstring(found) == read_docstring(imported)
    for flag in "needs_teacher", "needs_index", "needs_maps":
        assert getattr(found, flag, None) == getattr(imported, flag, None)
