"""Reads one YAML value: the dialect of configs, what in a text is not part of the value, and errors in words."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import yaml

_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$")


class Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-3 is a number and a date is text, without aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next node; an error for an alias."""
        if self.check_event(yaml.AliasEvent):
            message = "aliases (*name) are not supported; use ${key.sub} to refer to another value"
            raise yaml.MarkedYAMLError(problem=message, problem_mark=self.peek_event().start_mark)
        return super().compose_node(parent, index)


class Dumper(yaml.SafeDumper):
    """Quotes exactly the strings that `Loader` would read as another type."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
Dumper.yaml_implicit_resolvers = Loader.yaml_implicit_resolvers
Dumper.add_representer(
    list, lambda dumper, values: dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)
)


def compose(text: str) -> yaml.Node | None:
    """The text as a node; None if it is empty. Raises YAMLError or RecursionError."""
    loader = Loader(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def has_comment(text: str) -> bool:
    """Whether YAML skips a part of a text, which it can read, as a comment."""
    tokens = list(yaml.scan(text, Loader))
    return any("#" in text[one.end_mark.index : two.start_mark.index] for one, two in pairwise(tokens))


def is_plain_text(node: yaml.Node | None) -> bool:
    """Whether a node is text without quotation marks."""
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.tag == "tag:yaml.org,2002:str"


def describe_error(error: Exception) -> str:
    """The error of reading a text or file, to follow its name."""
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"is not UTF-8 text (byte {error.start}); use a YAML file"
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror}"
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark or error.context_mark):
        context = f" ({error.context})" if error.context else ""
        return f"is not readable YAML: line {mark.line + 1}, column {mark.column + 1}: {error.problem}{context}"
    return f"is not readable: {str(error).splitlines()[0]}"
