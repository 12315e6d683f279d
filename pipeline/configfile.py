"""A YAML file and its overrides as plain data that remembers where each value was written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from pipeline.errors import UserError

Key = tuple[str | int, ...]
"""The way to a value: `("losses", "kd", "weight")`, or `("data", "crop", 1)` for an entry of a list."""

_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$")
_REFERENCE = re.compile(r"(?<!\\)\$\{\.*\w+(?:\.\w+|\[\w+\])*\}")
_PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null")}
_KEY = re.compile(r"[^.\[\]]+(?:\.[^.\[\]]+|\[[^\[\]]+\])*")
_KEY_PART = re.compile(r"\[([^\[\]]+)\]|([^.\[\]]+)")


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-3 is a number, a date is text, and each value stands where it is used."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            message = "aliases (*name) are not supported; refer to another value as ${key.sub}"
            raise yaml.MarkedYAMLError(problem=message, problem_mark=self.peek_event().start_mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes exactly the text that `_Loader` would otherwise read as something else."""


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
    """Write plain data as YAML that `Document` reads back to the same data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def show_key(key: Key) -> str:
    """Write a key as an override names it: `data.crop[1]`, `losses[package.module:Class].weight`."""
    parts = [f"[{part}]" if isinstance(part, int) or "." in part else f".{part}" for part in key]
    text = "".join(parts).removeprefix(".")
    return text if text.isprintable() else show_value(text)


def show_value(value: Any) -> str:
    """Write a value for an error message, on one line and not longer than a glance."""
    if value is None:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 60 else text[:57] + "..."


class Document:
    """A config file with its overrides as plain `data`, and the faults found so far, each with its place."""

    def __init__(self, path: Path, overrides: Sequence[str] = (), defaults: Mapping[str, Any] | None = None) -> None:
        """Read the file, fill in `defaults` (a section key by key), apply overrides, then resolve `${key.sub}`.

        Raises UserError for a file that is not YAML at all; all smaller faults wait for `check`.
        """
        self._origins: dict[Key, str] = {(): str(path)}
        self._overridden: set[Key] = set()
        self._faults: dict[Key, str] = {}
        self._unreadable: list[str] = []
        config = OmegaConf.create(_filled(self._file(path), defaults or {}))
        for text in overrides:
            self._override(config, text)
        self.data: dict[str, Any] = self._resolved(config, ())

    def fault(self, key: Key, message: str) -> None:
        """Note what is wrong at `key`; of several faults at one key the first stays."""
        origin = self._origins[self._place(key)]
        self._faults.setdefault(key, f"{show_key(key) or 'the config'}: {message} ({origin})")

    def removed(self, key: Key) -> bool:
        """Whether an override set this very key to null."""
        value: Any = self.data
        for part in key:
            value = value[part]
        return value is None and key in self._overridden

    def check(self) -> None:
        """Raise UserError with all faults, a line each, in the order of the file and then of the overrides."""
        order = {key: i for i, key in enumerate(self._origins)}
        faults = sorted(self._faults, key=lambda key: order[self._place(key)])
        if lines := [self._faults[key] for key in faults] + self._unreadable:
            raise UserError("\n".join(lines))

    def _place(self, key: Key) -> Key:
        """The key itself if it was written, or else the nearest one around it that was."""
        while key not in self._origins:
            key = key[:-1]
        return key

    def _file(self, path: Path) -> dict[str, Any]:
        try:
            node = _compose(path.read_text(encoding="utf-8"))
            data = {} if node is None else self._plain(node, (), lambda at: f"{path} line {at.start_mark.line + 1}")
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError, OSError) as error:
            raise UserError(f"{path}: {_in_words(error)}") from None
        if not isinstance(data, dict):
            raise UserError(f"{path}: must consist of lines `key: value`, got {show_value(data)}")
        return data

    def _override(self, config: DictConfig, text: str) -> None:
        """Set one `key.sub=value`; the value is read as YAML and replaces what was there."""
        name, equals, written = text.partition("=")
        shown = text if text.isprintable() else repr(text)[1:-1]
        if not equals or not _KEY.fullmatch(name.strip()):
            self._unreadable.append(f'override "{shown}": must be key=value, e.g. train.steps=1000')
            return
        if ":" in name and "[" not in name:
            self._unreadable.append(
                f'override "{shown}": write a class in brackets: losses[package.module:Class].weight=1'
            )
            return
        parts = (bracketed or plain for bracketed, plain in _KEY_PART.findall(name.strip()))
        key: Key = tuple(int(part) if part.isdecimal() else part for part in parts)
        origin = f"override {shown}"
        try:
            node = _compose(written)
            self._replace_origin(config, key, origin)
            value = None if node is None else self._plain(node, key, lambda _: origin)
            OmegaConf.update(config, show_key(key), value, merge=False)
        except (yaml.YAMLError, RecursionError) as error:
            self._unreadable.append(f'override "{shown}": {_in_words(error)}; put text with special signs in quotes')
        except (OmegaConfBaseException, ValueError):
            self._unreadable.append(f'override "{shown}": there is no {show_key(key)} that could be set')

    def _replace_origin(self, config: DictConfig, key: Key, origin: str) -> None:
        self._origins = {at: place for at, place in self._origins.items() if at[: len(key)] != key}
        self._overridden = {at for at in self._overridden if at[: len(key)] != key} | {key}
        for end in range(1, len(key)):
            section = key[:end]
            if section not in self._origins or not OmegaConf.is_config(OmegaConf.select(config, show_key(section))):
                self._origins[section] = origin
        self._origins[key] = origin

    def _plain(self, node: yaml.Node, key: Key, place: Callable[[yaml.Node], str]) -> Any:
        """The node as plain data, with the place of all that is in it noted."""
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
        if isinstance(value, str) and "${" in _REFERENCE.sub("", value):
            self.fault(
                key, f"only ${{key.sub}} is read, to repeat another value of this config, got {show_value(value)}"
            )
            return None
        return value

    def _entry(self, node: yaml.Node, key: Key, place: Callable[[yaml.Node], str]) -> Any:
        self._origins[key] = place(node)
        return self._plain(node, key, place)

    def _mapping(self, node: yaml.MappingNode, key: Key, place: Callable[[yaml.Node], str]) -> dict[str, Any]:
        data: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for name, value in node.value:
            if not isinstance(name, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be plain text", problem_mark=name.start_mark)
            at, line = (*key, name.value), name.start_mark.line + 1
            self._origins[at] = place(name)
            if name.value in data:
                self.fault(at, f"is given twice, in lines {lines[name.value]} and {line}; keep one")
            lines[name.value] = line
            data[name.value] = self._plain(value, at, place)
        return data

    def _resolved(self, config: DictConfig | ListConfig, key: Key) -> Any:
        """The config as plain data with every reference replaced by the value that it refers to."""
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
                self.fault(
                    at, f"refers to a key that this config does not have, or to itself, got {show_value(written)}"
                )
            values.append(None)
        return dict(zip(names, values, strict=True)) if isinstance(config, DictConfig) else values


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
    except (ValueError, KeyError):  # as for `!!int two`
        problem = f"{show_value(node.value)} is not what its tag says"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None


def _in_words(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"is not UTF-8 text (byte {error.start}); give a YAML file"
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror}"
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark or error.context_mark):
        context = f" ({error.context})" if error.context else ""
        return f"is not readable YAML: line {mark.line + 1}, column {mark.column + 1}: {error.problem}{context}"
    return f"is not readable: {str(error).splitlines()[0]}"
