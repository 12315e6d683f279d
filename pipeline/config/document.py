"""A YAML file with overrides as plain data, with the location of each value."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from pipeline.common.errors import UserError
from pipeline.config.renamed import renamed, report_renamed

Key = tuple[str | int, ...]
"""Path to a value: `("losses", "kd", "weight")`, or `("data", "crop", 1)` for an entry of a list."""

_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$")
_REFERENCE = re.compile(r"(?<!\\)\$\{\.*\w+(?:\.\w+|\[\w+\])*\}")
_PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null")}
_KEY = re.compile(r"[^.\[\]]+(?:\.[^.\[\]]+|\[[^\[\]]+\])*")
_KEY_PART = re.compile(r"\[([^\[\]]+)\]|([^.\[\]]+)")


class _Loader(yaml.SafeLoader):
    """Safe YAML loader that reads 1e-3 as a number and a date as text, and rejects aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            message = "aliases (*name) are not supported; use ${key.sub} to refer to another value"
            raise yaml.MarkedYAMLError(problem=message, problem_mark=self.peek_event().start_mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """YAML dumper that quotes exactly the strings that `_Loader` would read as another type."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers
_Dumper.add_representer(
    list, lambda dumper, values: dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)
)


def dump(data: Mapping[str, Any]) -> str:
    """Write plain data as YAML, which `Document` reads back to the same data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def show_key(key: Key) -> str:
    """Format a key as in overrides: `data.crop[1]`, `losses[package.module:Class].weight`."""
    parts = [f"[{part}]" if isinstance(part, int) or "." in part else f".{part}" for part in key]
    text = "".join(parts).removeprefix(".")
    return text if text.isprintable() else show_value(text)


def show_value(value: Any) -> str:
    """Format a value for an error message, on one line of at most 60 characters."""
    if value is None:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 60 else text[:57] + "..."


class Document:
    """A config file with overrides: plain `data`, and the errors found so far with their locations.

    Old names of settings are replaced by the current ones. Defaults are filled in key by key, then overrides are
    applied, and `${key.sub}` is resolved.

    Args:
        path: The YAML file.
        overrides: Overrides such as `train.steps=100`.
        defaults: Default values, by section.

    Raises:
        UserError: The file is not YAML. All other errors are raised by `check`.
    """

    def __init__(self, path: Path, overrides: Sequence[str] = (), defaults: Mapping[str, Any] | None = None) -> None:
        self._origins: dict[Key, str] = {(): str(path)}
        self._overridden: set[Key] = set()
        self._named: dict[Key, Key] = {}  # setting -> its name in an override, which may be a former name
        self._faults: dict[Key, str] = {}
        self._unreadable: list[str] = []
        config = OmegaConf.create(_filled(self._file(path), defaults or {}))
        for text in overrides:
            self._override(config, text)
        self.data: dict[str, Any] = self._resolved(config, ())

    def fault(self, key: Key, message: str) -> None:
        """Record an error at a key. Only the first error at a key is kept."""
        origin = self._origins[self._place(key)]
        self._faults.setdefault(key, f"{show_key(key) or 'the config'}: {message} ({origin})")

    def removed(self, key: Key) -> bool:
        """Whether an override set this key to null."""
        value: Any = self.data
        for part in key:
            value = value[part]
        return value is None and key in self._overridden

    def check(self) -> None:
        """Check that no errors were recorded.

        Raises:
            UserError: There are errors. The message has one line per error, first in the order of the file, then in
            that of the overrides.
        """
        order = {key: i for i, key in enumerate(self._origins)}
        faults = sorted(self._faults, key=lambda key: order[self._place(key)])
        if lines := [self._faults[key] for key in faults] + self._unreadable:
            raise UserError("\n".join(lines))

    def _place(self, key: Key) -> Key:
        """The key itself if it was written, else the closest parent that was."""
        while key not in self._origins:
            key = key[:-1]
        return key

    def _file(self, path: Path) -> dict[str, Any]:
        try:
            node = _compose(path.read_text(encoding="utf-8"))
            data = {} if node is None else self._plain(node, (), lambda at: f"{path} line {at.start_mark.line + 1}")
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError, OSError) as error:
            raise UserError(f"{path}: {_describe_error(error)}") from None
        if not isinstance(data, dict):
            raise UserError(f"{path}: must consist of lines `key: value`, got {show_value(data)}")
        return data

    def _override(self, config: DictConfig, text: str) -> None:
        """Apply one `key.sub=value`. The value is read as YAML and replaces the previous one."""
        name, equals, written = text.partition("=")
        shown = text if text.isprintable() else repr(text)[1:-1]
        if not equals or not _KEY.fullmatch(name.strip()):
            self._unreadable.append(f'override "{shown}": must be key=value, e.g. train.steps=1000')
            return
        if ":" in name and "[" not in name:
            self._unreadable.append(
                f'override "{shown}": put the class in brackets: losses[package.module:Class].weight=1'
            )
            return
        origin = f"override {shown}"
        written_key = _parts(name.strip())
        key = _current(written_key, origin)
        try:
            node = _compose(written)
            self._replace_origin(config, key, origin)
            if (earlier := self._named.setdefault(key, written_key)) != written_key:
                self.fault(key, f"is set twice, as {show_key(earlier)} and as {show_key(written_key)}; keep one")
            value = None if node is None else self._plain(node, key, lambda _: origin)
            OmegaConf.update(config, show_key(key), value, merge=False)
        except (yaml.YAMLError, RecursionError) as error:
            self._unreadable.append(
                f'override "{shown}": {_describe_error(error)}; quote values with special characters'
            )
        except (OmegaConfBaseException, ValueError):
            self._unreadable.append(f'override "{shown}": {show_key(key)} cannot be set')

    def _replace_origin(self, config: DictConfig, key: Key, origin: str) -> None:
        self._origins = {at: place for at, place in self._origins.items() if at[: len(key)] != key}
        self._overridden = {at for at in self._overridden if at[: len(key)] != key} | {key}
        for end in range(1, len(key)):
            section = key[:end]
            if section not in self._origins or not OmegaConf.is_config(OmegaConf.select(config, show_key(section))):
                self._origins[section] = origin
        self._origins[key] = origin

    def _plain(self, node: yaml.Node, key: Key, place: Callable[[yaml.Node], str]) -> Any:
        """The node as plain data. The location of everything in it is recorded."""
        if node.tag not in _PLAIN:
            problem = (
                f"{show_value(node.tag)} is not supported: only text, numbers, true, false, null, lists and mappings"
            )
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key, place)
        if isinstance(node, yaml.SequenceNode):
            return [self._entry(child, (*key, i), place) for i, child in enumerate(node.value)]
        value = _scalar(node)
        if not isinstance(value, str) or "${" not in value:
            return value
        if "${" in _REFERENCE.sub("", value):
            self.fault(
                key,
                f"only ${{key.sub}} is supported, which refers to another value of this config, got "
                f"{show_value(value)}",
            )
            return None
        return _REFERENCE.sub(lambda reference: _current_reference(reference[0], key, place(node)), value)

    def _entry(self, node: yaml.Node, key: Key, place: Callable[[yaml.Node], str]) -> Any:
        self._origins[key] = place(node)
        return self._plain(node, key, place)

    def _mapping(self, node: yaml.MappingNode, key: Key, place: Callable[[yaml.Node], str]) -> dict[str, Any]:
        data: dict[str, Any] = {}
        given: dict[str, tuple[Key, int]] = {}
        for name, value in node.value:
            if not isinstance(name, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be plain text", problem_mark=name.start_mark)
            written, line = (*key, name.value), name.start_mark.line + 1
            at = _current(written, place(name))
            self._origins[at] = place(name)
            own = str(at[-1])
            if own in given:
                self.fault(at, _twice(*given[own], written, line))
            given[own] = written, line
            data[own] = self._plain(value, at, place)
        return data

    def _resolved(self, config: DictConfig | ListConfig, key: Key) -> Any:
        """The config as plain data with all references replaced by their values."""
        names: list[Any] = list(config.keys()) if isinstance(config, DictConfig) else list(range(len(config)))
        values = []
        for name in names:
            at = (*key, name)
            try:
                value = config[name]
                values.append(self._resolved(value, at) if isinstance(value, DictConfig | ListConfig) else value)
                continue
            except MissingMandatoryValue:
                self.fault(at, "is required and missing")
            except (OmegaConfBaseException, RecursionError):
                written = OmegaConf.to_container(config)[name]  # type: ignore[index]
                self.fault(at, f"refers to a missing key or to itself, got {show_value(written)}")
            values.append(None)
        return dict(zip(names, values, strict=True)) if isinstance(config, DictConfig) else values


def _parts(name: str) -> Key:
    """Parse a key such as `data.crop[1]`."""
    parts = (bracketed or plain for bracketed, plain in _KEY_PART.findall(name))
    return tuple(int(part) if part.isdecimal() else part for part in parts)


def _current(key: Key, place: str) -> Key:
    """The key under its current name. Using an old name logs a warning."""
    current = renamed(key)
    if current != key:
        report_renamed(key, place)
    return current


def _current_reference(reference: str, key: Key, place: str) -> str:
    """`${key.sub}` under its current name. `${.sub}` is relative to the section of `key`."""
    path = reference[2:-1]
    name = path.lstrip(".")
    up = len(path) - len(name)
    written = (*(key[:-up] if up else ()), *_parts(name))
    current = _current(written, place)
    return reference if current == written else f"${{{show_key(current)}}}"


def _twice(earlier: Key, earlier_line: int, key: Key, line: int) -> str:
    if earlier == key:
        return f"is set twice, in lines {earlier_line} and {line}; keep one"
    names = f"as {show_key(earlier)} in line {earlier_line} and as {show_key(key)} in line {line}"
    return f"is set twice, {names}; keep one"


def _filled(data: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    sections = {
        key: {**values, **data[key]}
        for key, values in defaults.items()
        if isinstance(values, Mapping) and isinstance(data.get(key), Mapping)
    }
    return {**defaults, **data, **sections}


def _compose(text: str) -> yaml.Node | None:
    loader = _Loader(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def _scalar(node: yaml.Node) -> str | int | float | bool | None:
    loader = _Loader("")
    try:
        return loader.construct_object(node)
    except (ValueError, KeyError):  # e.g. `!!int two`
        problem = f"{show_value(node.value)} does not match its tag"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None


def _describe_error(error: Exception) -> str:
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
