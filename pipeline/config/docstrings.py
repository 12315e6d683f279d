"""Extracts descriptions of settings from Google docstrings: of a class, and of each of its arguments."""

from __future__ import annotations

import inspect
import re

_SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Example):\n", re.MULTILINE)
_ARGUMENT = re.compile(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)


def read_docstring(cls: type) -> tuple[str, dict[str, str]]:
    """Split the docstring of a class.

    Args:
        cls: The class.

    Returns:
        The text before the first section, and argument -> description, including the arguments of its bases.
    """
    text = ""
    arguments: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        if base.__doc__:
            text, *rest = _SECTION.split(inspect.cleandoc(base.__doc__))
            sections = dict(zip(rest[::2], rest[1::2], strict=True))
            found = _ARGUMENT.findall(sections.get("Args", ""))
            # A config says null where Python says None.
            arguments |= {name: re.sub(r"\bNone\b", "null", " ".join(words.split())) for name, words in found}
    return text.strip(), arguments
