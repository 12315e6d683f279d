"""Settings in words: what `wcord config explain` says of a key, and the page docs/config-reference.md."""

from __future__ import annotations

import json
from collections.abc import Iterator

from pipeline.config import SECTIONS
from pipeline.configfile import show_key
from pipeline.errors import UserError
from pipeline.explain import near
from pipeline.schema import Schema, schema

_TYPES = {
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "string": "text",
    "null": "null",
    "object": "mapping",
}
_LIMITS = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}

HEAD = """# Config reference

<!-- Made by `wcord config reference`; tests/pipeline/test_schema.py says when it is out of date. -->

Every key that a config may have, with its type, range and default. `wcord config explain train.clip` says the same of
one key, `wcord config list` names the shipped configs, `wcord config show rgb_to_depth` writes one with all defaults.

Editors complete and check YAML by the schema. Write it once, and name it in the config's first line:

```sh
wcord config schema > wcord.schema.json
```

```yaml
# yaml-language-server: $schema=wcord.schema.json
```
"""


def explain_key(key: str) -> str:
    """Type, range, default and meaning of a key, or of all keys of a section.

    A component is `losses.wcord`, `modality.depth` or `encoder.cnn5`, also after `student.` or `teacher.`.
    Raises UserError for an unknown key, naming a near one.
    """
    sections = _sections(schema())
    written = key.removeprefix("student.").removeprefix("teacher.")
    name = written if written.split(".")[0] in ("modality", "encoder") and "." in written else key
    if name in sections:
        section = sections[name]
        return "\n".join([f"{name}: {section['description']}", "", *_lines(section)]).rstrip()
    parent, _, last = name.rpartition(".")
    setting = sections.get(parent, {}).get("properties", {}).get(last)
    if setting is None:
        known = [
            *sections,
            *(f"{at}.{name}".lstrip(".") for at, part in sections.items() for name in part["properties"]),
        ]
        match = near(key, known)
        raise UserError(
            f"{key}: no such setting. "
            + (f"Did you mean {match}?" if match else "")
            + " `wcord config explain` without a key lists the sections."
        )
    meaning = setting.get("description") or sections[parent]["description"]
    return f"{name}: {words(setting)}; {_or_default(sections[parent], last)}.\n{meaning}"


def explain_all() -> str:
    """The sections and components, a line each."""
    return "\n".join(
        f"{name or 'top level'}: {section['description'].splitlines()[0]}"
        for name, section in _sections(schema()).items()
    )


def page() -> str:
    """The reference as Markdown."""
    parts: list[str] = [HEAD]
    same: dict[tuple[str, str], list[str]] = {}
    for name, section in _sections(schema()).items():
        table = "\n".join(_rows(section))
        text = f"{section['description']}\n\n{table}".rstrip()
        same.setdefault((name.split(".")[0] if "." in name else name, text), []).append(name)
    for (_, text), names in same.items():  # networks that differ in their layers alone stand together
        parts.append(f"## {', '.join(f'`{name}`' if name else 'Top level' for name in names)}\n\n{text}\n")
    return "\n".join(parts)


def words(setting: Schema) -> str:
    """The type and the range of a setting, such as `number above 0, or null`."""
    if (part := setting.get("$ref", "").rpartition("/")[2]).islower():
        return part
    if "anyOf" in setting:
        return ", or ".join(dict.fromkeys(words(one) for one in setting["anyOf"]))
    if "enum" in setting or "const" in setting:
        return " | ".join(str(value) for value in setting.get("enum", [setting.get("const")]))
    if setting.get("type") == "array":
        if "prefixItems" in setting:
            return f"[{', '.join(words(one) for one in setting['prefixItems'])}]"
        return f"list of {words(setting.get('items', {}))}"
    limits = [f"{word} {setting[limit]:g}" for limit, word in _LIMITS.items() if limit in setting]
    return " ".join([_TYPES.get(str(setting.get("type")), "mapping"), " and ".join(limits)]).strip()


def _sections(whole: Schema) -> dict[str, Schema]:
    """Key of a section, or `losses.NAME`, `modality.NAME`, `encoder.NAME`, to its part of the schema."""
    parts = whole["$defs"]
    models = {show_key(key): parts.get(model.__name__, whole) for key, model in SECTIONS.items()}
    return models | {name: part for name, part in parts.items() if "." in name}


def _settings(section: Schema) -> Iterator[tuple[str, Schema]]:
    """A component's `name` is how it is chosen, none of its settings."""
    return ((name, one) for name, one in section["properties"].items() if one != {"type": "string"} or name != "name")


def _lines(section: Schema) -> list[str]:
    return [
        f"  {name}: {words(setting)}; {_or_default(section, name)}. {setting.get('description', '')}".rstrip()
        for name, setting in _settings(section)
    ]


def _rows(section: Schema) -> list[str]:
    settings = list(_settings(section))
    described = any("description" in setting for _, setting in settings)
    rows = []
    for name, setting in settings:
        cells = [f"`{name}`", words(setting), _default(section, name)]
        cells += [setting.get("description", "")] if described else []
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    heads = ["key", "type", "default", *(["what it is"] if described else [])]
    return [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *rows] if rows else ["No settings."]


def _default(section: Schema, name: str) -> str:
    if name in section.get("required", []):
        return "required"
    setting = section["properties"][name]
    return json.dumps(setting["default"], ensure_ascii=False) if "default" in setting else "optional"


def _or_default(section: Schema, name: str) -> str:
    written = _default(section, name)
    return written if written in ("required", "optional") else f"{written} by default"
