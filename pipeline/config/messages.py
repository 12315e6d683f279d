"""Readable messages about errors in a config: what was expected, what was found, and the closest name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pipeline.config.document import Document, Key, show_key, show_value

_EXPECTED = {
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "finite_number": "must be a finite number",
    "literal_error": "must be {expected}",
    "string_too_short": "must not be empty",
    "too_short": "must have {min_length} or more entries",
    "too_long": "must not have more entries than {max_length}",
    "none_required": "must be null",
    "value_error": "{error}",
}
_EXPECTED_TYPE = {
    "int": "must be an integer",
    "float": "must be a number",
    "bool": "must be true or false",
    "string": "must be a string",
    "list": "must be a list",
    "tuple": "must be a list",
    "model": "must be a mapping `key: value`",
    "dict": "must be a mapping `key: value`",
}


def explain(document: Document, error: ValidationError, at: Key, allowed: Mapping[Key, Iterable[str]]) -> None:
    """Record each error that pydantic found, or note that a setting is text if only the type of its value is wrong.

    Args:
        document: Records the errors.
        error: The error of pydantic.
        at: Key of the validated value.
        allowed: Section -> its keys, for suggestions.
    """
    expected: dict[Key, list[str]] = {}
    given: dict[Key, str] = {}
    kinds: dict[Key, set[str]] = {}
    for fault in error.errors():
        key = _written(document.data, (*at, *fault["loc"]))
        kinds.setdefault(key, set()).add(fault["type"])
        if fault["type"] == "extra_forbidden":
            document.fault(key, unknown(key, allowed))
        elif fault["type"] == "missing" and isinstance(fault["loc"][-1], str):
            document.fault((*key, fault["loc"][-1]), "is required and missing")
        else:
            expected.setdefault(key, []).append(_expectation(fault))
            whole_section = fault["type"] == "value_error" and isinstance(fault["input"], dict)
            given[key] = "" if whole_section else f", got {show_value(fault['input'])}"
    for key, wanted in expected.items():
        if all(kind.endswith("_type") for kind in kinds[key]):
            if any(other[: len(key)] == key != other for other in kinds):
                continue  # what is wrong is within it; the other types of the union do not matter
            if "string_type" in kinds[key] and document.want_text(key):
                continue
        document.fault(key, " or ".join(dict.fromkeys(wanted)) + given[key])


def unknown(key: Key, allowed: Mapping[Key, Iterable[str]]) -> str:
    """Make the message about an unknown key: suggest the closest key in any section, or list the allowed ones.

    Args:
        key: The unknown key.
        allowed: Section -> its keys.
    """
    name, here = str(key[-1]), list(allowed.get(key[:-1], ()))
    elsewhere = (show_key((*section, name)) for section, names in allowed.items() if name in names)
    if match := near(name, here) or next(elsewhere, None):
        return f"unknown key; did you mean {match}?"
    return f"unknown key; allowed are {', '.join(here)}" if here else "unknown key; none is allowed here"


def near(name: str, known: Iterable[str]) -> str | None:
    """The closest known name, or None."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def _written(data: Any, key: Key) -> Key:
    """The part of pydantic's location that exists in the data. The rest are missing keys and members of unions."""
    written: Key = ()
    for part in key:
        if isinstance(data, dict | list) and part in (data if isinstance(data, dict) else range(len(data))):
            data = data[part]  # type: ignore[index]
            written = (*written, part)
    return written


def _expectation(fault: ErrorDetails) -> str:
    kind = fault["type"]
    if kind == "missing":
        return f"must have {int(fault['loc'][-1]) + 1} or more entries"
    if template := _EXPECTED.get(kind):
        limits = fault.get("ctx", {})
        return template.format_map({name: str(limit).removesuffix(".0") for name, limit in limits.items()})
    return _EXPECTED_TYPE.get(kind.split("_")[0], fault["msg"])
