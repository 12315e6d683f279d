"""The JSON schema of a config, from the models and the constructors, so that editors complete and check the YAML."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Annotated, Any

from annotated_types import Ge
from pydantic import TypeAdapter, with_config
from typing_extensions import NotRequired, TypedDict

from pipeline.components import REFUSING, parameters
from pipeline.config import Config

Schema = dict[str, Any]

OWN = {"type": "string", "pattern": r"^[\w.]+:\w+$"}
"""A class of the user's: `package.module:Class`."""


def schema() -> Schema:
    """JSON schema (draft 2020-12) of a config; losses, modalities and encoders are `$defs`, such as `losses.wcord`.

    An encoder's settings are those of all classes of its name. That an encoder reads its modality, and what
    validators compare, only `load` checks.
    """
    from losses import LOSSES
    from modalities import MODALITIES

    found = Config.model_json_schema()
    encoders: dict[str, list[type]] = {}
    for modality in MODALITIES.values():
        for name, encoder in modality.encoders.items():
            if encoder not in encoders.setdefault(name, []):
                encoders[name].append(encoder)
    weight = {"weight": NotRequired[Annotated[float, Ge(0)]]}
    parts = {
        **{f"losses.{name}": _settings([loss], weight, weight=1.0) for name, loss in LOSSES.items()},
        **{f"modality.{name}": _settings([kind], keyword_only=False) for name, kind in MODALITIES.items()},
        **{f"encoder.{name}": _settings(classes) for name, classes in encoders.items()},
    }
    found["$defs"] |= parts
    found["properties"]["losses"] |= {
        "properties": {name: {"anyOf": [_ref(f"losses.{name}"), {"type": "null"}]} for name in LOSSES},
        "patternProperties": {OWN["pattern"]: {"type": ["object", "null"]}},
        "additionalProperties": False,
    }
    for part, names in ("modality", MODALITIES), ("encoder", encoders):
        found["$defs"][part] = _component(part, names)
        several = {"type": "array", "items": _ref(part), "minItems": 2}
        found["$defs"]["Network"]["properties"][part]["anyOf"] = [_ref(part), several]
        found["$defs"]["Teacher"]["properties"][part]["anyOf"] = [_ref(part), several, {"type": "null"}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_plain(found)}


def _component(part: str, names: Iterable[str]) -> Schema:
    """A name, or a mapping with it and the settings of its class."""
    mappings = [{"if": {"properties": {"name": {"const": name}}}, "then": _ref(f"{part}.{name}")} for name in names]
    name = {"anyOf": [{"enum": list(names)}, OWN]}
    return {"anyOf": [name, {"type": "object", "properties": {"name": name}, "required": ["name"], "allOf": mappings}]}


def _settings(
    classes: list[type], more: Mapping[str, Any] | None = None, *, keyword_only: bool = True, **defaults: Any
) -> Schema:
    """What a config may set of classes that share a name: types, limits and defaults; the text is their docstrings'."""
    fields = dict(more or {})
    for cls in classes:
        fields |= parameters(cls, keyword_only=keyword_only)
        for parameter in inspect.signature(cls).parameters.values():
            if parameter.name in fields and parameter.default is not parameter.empty:
                defaults[parameter.name] = parameter.default
    settings = TypeAdapter(with_config(REFUSING)(TypedDict("Settings", fields))).json_schema()  # type: ignore[operator]
    for name, default in defaults.items():
        with suppress(TypeError):  # a default that cannot be written in a config
            settings["properties"][name]["default"] = json.loads(json.dumps(default))
    if more is None:
        settings["properties"]["name"] = {"type": "string"}
    return settings | {"description": "\n\n".join(filter(None, map(inspect.getdoc, classes)))}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _plain(schema: Any) -> Any:
    """Without pydantic's titles, which repeat the names; a property that is called `title` stays."""
    if isinstance(schema, list):
        return [_plain(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: _plain(value) for key, value in schema.items() if key != "title" or isinstance(value, dict)}
