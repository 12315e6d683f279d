"""The JSON schema of a config, for completion and validation in editors."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache, partial
from typing import Any, cast

from pydantic import TypeAdapter, with_config
from typing_extensions import TypedDict

from pipeline.config.components import FREEZE, REFUSING, TERM, WEIGHTS, parameters
from pipeline.config.docstrings import read_docstring
from pipeline.config.outline import outline
from pipeline.config.settings import Config
from pipeline.config.weight_schedule import DEFAULTS

Schema = dict[str, Any]

OWN = {"type": "string", "pattern": r"^[\w.]+:\w+$"}
"""A user-defined class: `package.module:Class`."""


@cache
def schema() -> Schema:
    """Make the JSON schema (draft 2020-12) of a config.

    Losses, modalities and encoders are in `$defs`, e.g. `losses.wcord`. If several encoder classes share a name, the
    schema lists the settings of all of them. Whether an encoder supports a modality, and conditions that involve
    several settings, are only checked by `load`.
    """
    found = Config.model_json_schema()
    parts = {name: make() for name, make in _components().items()}
    losses, modalities, encoders = (
        [name.partition(".")[2] for name in parts if name.startswith(f"{kind}.")]
        for kind in ("losses", "modality", "encoder")
    )
    shared: Schema = {}
    for own in parts.values():
        shared |= own.pop("$defs", {})  # references are relative to the root
    for name, default in DEFAULTS.items():
        shared["WeightSchedule"]["properties"][name]["default"] = default
    found["$defs"] |= shared | parts
    found["properties"]["losses"] |= {
        "properties": {name: {"anyOf": [_ref(f"losses.{name}"), {"type": "null"}]} for name in losses},
        "patternProperties": {OWN["pattern"]: {"type": ["object", "null"]}},
        "additionalProperties": False,
    }
    for part, names in ("modality", modalities), ("encoder", encoders):
        found["$defs"][part] = _component(part, names)
        several = {"type": "array", "items": _ref(part), "minItems": 2}
        found["$defs"]["Student"]["properties"][part]["anyOf"] = [_ref(part), several]
        found["$defs"]["Teacher"]["properties"][part]["anyOf"] = [_ref(part), several, {"type": "null"}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_plain(found)}


def component_schema(name: str) -> Schema | None:
    """The part of the schema for one loss, modality or encoder, e.g. `losses.wcord`; None if there is none.

    It takes a third of the time of the whole schema.
    """
    make = _components().get(name)
    return None if make is None else cast(Schema, _plain(make()))


def _components() -> dict[str, Callable[[], Schema]]:
    """Name of each loss, modality and encoder -> makes the schema of its settings."""
    losses: dict[str, type] = outline("losses").LOSSES
    modalities: dict[str, Any] = outline("modalities").MODALITIES
    encoders: dict[str, dict[type, str]] = {}  # name -> its classes and their modalities
    for kind, modality in modalities.items():
        for name, encoder in modality.encoders.items():
            classes = encoders.setdefault(name, {})
            classes[encoder] = f"{classes[encoder]}, `{kind}`" if encoder in classes else f"`{kind}`"
    return {
        **{f"losses.{name}": partial(_settings, {loss: ""}, TERM, weight=1.0) for name, loss in losses.items()},
        **{f"modality.{name}": partial(_settings, {kind: ""}, keyword_only=False) for name, kind in modalities.items()},
        **{f"encoder.{name}": partial(_settings, classes, WEIGHTS | FREEZE) for name, classes in encoders.items()},
    }


def _component(part: str, names: Iterable[str]) -> Schema:
    """A name, or a mapping with a name and the settings of its class."""
    mappings = [{"if": {"properties": {"name": {"const": name}}}, "then": _ref(f"{part}.{name}")} for name in names]
    name = {"anyOf": [{"enum": list(names)}, OWN]}
    return {"anyOf": [name, {"type": "object", "properties": {"name": name}, "required": ["name"], "allOf": mappings}]}


def _settings(
    classes: Mapping[type, str], more: Mapping[str, Any] | None = None, *, keyword_only: bool = True, **defaults: Any
) -> Schema:
    """The settings of the classes that share a name: types, limits, defaults, and descriptions from docstrings.

    The text of each class begins with its modalities if there are several classes.
    """
    fields = dict(more or {})
    for cls in classes:
        fields |= parameters(cls, keyword_only=keyword_only)
        for parameter in inspect.signature(cls).parameters.values():
            if parameter.name in fields and parameter.default is not parameter.empty:
                defaults[parameter.name] = parameter.default
    settings = TypeAdapter(with_config(REFUSING)(TypedDict("Settings", fields))).json_schema()  # type: ignore[operator]
    for name, default in defaults.items():
        with suppress(TypeError):  # a default that YAML cannot represent
            settings["properties"][name]["default"] = json.loads(json.dumps(default))
    texts = []
    for cls, kinds in classes.items():
        text, arguments = read_docstring(cls)
        texts.append(f"With modality {kinds}: {text}" if len(classes) > 1 else text)
        for name in arguments.keys() & settings["properties"].keys():
            settings["properties"][name].setdefault("description", arguments[name])
    if more is not TERM:
        settings["properties"]["name"] = {"type": "string"}
    return settings | {"description": "\n\n".join(filter(None, texts))}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _plain(schema: Any) -> Any:
    """Remove pydantic's titles, which repeat the names. Properties with the name `title` are kept."""
    if isinstance(schema, list):
        return [_plain(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: _plain(value) for key, value in schema.items() if key != "title" or isinstance(value, dict)}
