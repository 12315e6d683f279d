"""Descriptions of settings are read from the docstrings of their classes."""

from __future__ import annotations

import pytest

from pipeline.config.docstrings import read_docstring
from pipeline.config.json_schema import schema


class Documented:
    """A summary.

    More text: with a colon.

    Args:
        near: One line.
        far: Two lines, the second of which
            looks like: an argument.

    Raises:
        ValueError: Never.
    """


class Inherited(Documented): ...


class Extended(Documented):
    """Another summary.

    Args:
        far: Another line.
    """


class Undocumented: ...


@pytest.mark.parametrize("cls", [Documented, Inherited])
def test_text_and_arguments_are_separated(cls: type) -> None:
    text, arguments = read_docstring(cls)
    assert text == "A summary.\n\nMore text: with a colon."
    assert arguments == {"near": "One line.", "far": "Two lines, the second of which looks like: an argument."}


def test_arguments_of_bases_are_described() -> None:
    assert read_docstring(Extended) == ("Another summary.", {"near": "One line.", "far": "Another line."})


def test_a_class_without_docstring_has_no_descriptions() -> None:
    assert read_docstring(Undocumented) == ("", {})


def test_every_setting_of_a_component_has_a_description() -> None:
    components = {name: part for name, part in schema()["$defs"].items() if "." in name}
    assert [
        f"{name}.{key}"
        for name, part in components.items()
        for key, setting in part["properties"].items()
        if "description" not in setting and key not in ("name", "schedule")
    ] == []
