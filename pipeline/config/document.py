"""A YAML file with overrides as plain data, with the location of each value."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from pipeline.common.errors import UserError
from pipeline.config.renamed import renamed, report_renamed
from pipeline.config.yaml_reader import Dumper, Loader, compose, describe_error, has_comment, is_plain_text

Key = tuple[str | int, ...]
"""Path to a value: `("losses", "kd", "weight")`, or `("data", "crop", 1)` for an entry of a list."""

_REFERENCE = re.compile(r"(?<!\\)\$\{\.*\w+(?:\.\w+|\[\w+\])*\}")
_PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null")}
_KEY = re.compile(r"[^.\[\]]+(?:\.[^.\[\]]+|\[[^\[\]]+\])*")
_KEY_PART = re.compile(r"\[([^\[\]]+)\]|([^.\[\]]+)")


def dump(data: Mapping[str, Any]) -> str:
    """Write plain data as YAML, which `Document` reads back to the same data."""
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110)


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
        texts: Keys of settings that are text: the value is the text as it is written, whatever YAML would read in it.

    Raises:
        UserError: The file is not YAML. All other errors are raised by `check`.
    """

    def __init__(
        self,
        path: Path,
        overrides: Sequence[str] = (),
        defaults: Mapping[str, Any] | None = None,
        texts: AbstractSet[Key] = frozenset(),
    ) -> None:
        self._origins: dict[Key, str] = {(): str(path)}
        self._overridden: set[Key] = set()
        self._named: dict[Key, Key] = {}  # setting -> its name in an override, which may be a former name
        self._faults: dict[Key, str] = {}
        self._unreadable: list[str] = []
        self._texts = texts
        self._wanted: set[Key] = set()
        self._other: set[Key] = set()  # values that are not text, but were written as a text that they can be
        self._not_yaml: dict[Key, str] = {}  # override whose text is not, or not all, YAML -> why
        config = OmegaConf.create(_filled(self._file(path), defaults or {}))
        for text in overrides:
            self._override(config, text)
        self.data: dict[str, Any] = self._resolved(config, ())

    def fault(self, key: Key, message: str) -> None:
        """Record an error at a key. Only the first error at a key is kept."""
        origin = self._origins[self._place(key)]
        message += f"; it {self._not_yaml[key]}" if key in self._not_yaml else ""
        self._faults.setdefault(key, f"{show_key(key) or 'the config'}: {message} ({origin})")

    def want_text(self, key: Key) -> bool:
        """Note that a setting is text. False if its value is text already, or was not written as a single text."""
        if key in self._other:
            self._wanted.add(key)
        return key in self._other

    @property
    def texts(self) -> AbstractSet[Key]:
        """Keys of the settings that are text: those given, and those noted since, for which it must be read again."""
        return self._texts | self._wanted

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
            node = compose(path.read_text(encoding="utf-8"))
            data = {} if node is None else self._plain(node, (), lambda at: f"{path} line {at.start_mark.line + 1}")
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError, OSError) as error:
            raise UserError(f"{path}: {describe_error(error)}") from None
        if not isinstance(data, dict):
            raise UserError(f"{path}: must consist of lines `key: value`, got {show_value(data)}")
        return data

    def _override(self, config: DictConfig, text: str) -> None:
        """Apply one `key.sub=value`. The value replaces the previous one."""
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
            self._replace_origin(config, key, origin)
            if (earlier := self._named.setdefault(key, written_key)) != written_key:
                self.fault(key, f"is set twice, as {show_key(earlier)} and as {show_key(written_key)}; keep one")
            OmegaConf.update(config, show_key(key), self._override_value(written, key, origin), merge=False)
        except yaml.reader.ReaderError as error:
            self._unreadable.append(f'override "{shown}": {describe_error(error)}')
        except (OmegaConfBaseException, ValueError):
            self._unreadable.append(f'override "{shown}": {show_key(key)} cannot be set')

    def _override_value(self, written: str, key: Key, origin: str) -> Any:
        """The value as YAML, or the whole text: of a setting that is text, and if YAML reads only a part or nothing."""
        try:
            node = compose(written)
            if has_comment(written):
                self._not_yaml[key] = "contains a comment (#), which is not ignored; remove it"
            elif not (is_plain_text(node) or key in self._texts):
                self._other.add(key)
                return None if node is None else self._plain(node, key, lambda _: origin)
        except yaml.reader.ReaderError:
            raise
        except (yaml.YAMLError, RecursionError) as error:
            self._not_yaml[key] = f"{describe_error(error)}; quote text with special characters"
        return self._text(written.strip(), key, origin)

    def _replace_origin(self, config: DictConfig, key: Key, origin: str) -> None:
        self._origins = {at: place for at, place in self._origins.items() if at[: len(key)] != key}
        self._overridden = {at for at in self._overridden if at[: len(key)] != key} | {key}
        for at in [at for at in {*self._other, *self._not_yaml} if at[: len(key)] == key or key[: len(at)] == at]:
            self._other.discard(at)
            self._not_yaml.pop(at, None)
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
        value = node.value if key in self._texts else _scalar(node)
        if isinstance(value, str):
            return self._text(value, key, place(node))
        if value is not None:
            self._other.add(key)
        return value

    def _text(self, value: str, key: Key, place: str) -> str | None:
        """The text, with references under their current names."""
        if not _is_text(value):
            self.fault(key, f"must be a string without null characters or lone surrogates, got {show_value(value)}")
            return None
        if "${" not in value:
            return value
        if "${" in _REFERENCE.sub("", value):
            self.fault(
                key,
                f"only ${{key.sub}} is supported, which refers to another value of this config, got "
                f"{show_value(value)}",
            )
            return None
        return _REFERENCE.sub(lambda reference: _current_reference(reference[0], key, place), value)

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


def _is_text(value: str) -> bool:
    """Whether a value can be a path, or written to a file. Bytes that are no UTF-8 are surrogates in paths."""
    try:
        return b"\0" not in value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False


def _scalar(node: yaml.Node) -> str | int | float | bool | None:
    loader = Loader("")
    try:
        return loader.construct_object(node)
    except (ValueError, KeyError):  # e.g. `!!int two`
        problem = f"{show_value(node.value)} does not match its tag"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None
