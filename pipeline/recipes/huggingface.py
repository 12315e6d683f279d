"""The recipe `huggingface`: a folder of the `datasets` library, as its `save_to_disk` writes it, or of Parquet files.

Only pyarrow is needed. Photos, depth maps and sounds are bytes inside the tables and are packed as they are; a file
that a table merely points to is never opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.recipes import UNITS, Plan, Sample, number_classes, safe_key, spilled, stamp
from pipeline.recipes.arrow import SPLITS, Table, columns, members, places, tables


def plan(
    source: str | Path,
    fields: Mapping[str, str] | None = None,
    labels: Sequence[str] = (),
    group: str | None = None,
    name: str | None = None,
    licence: str = "not stated",
) -> Plan:
    """Plan a data set from such a folder.

    fields: field -> column; without them the image column is `rgb`, the audio column `audio` and the column of strings
        `text`, where there is only one of each.
    labels: columns of classes, the first is the task's; without them all columns of class labels.
    group: column of what must stay in one split; None makes every row its own group, as an empty cell does its own.
    A folder's own splits are kept; a single one is dealt out by the fractions.

    Raises UserError for a folder that is none of these, and for columns that are not there or not clear.
    """
    source = Path(source)
    found = tables(source)
    known = columns(found)
    fields = dict(fields) if fields else _by_kind(known)
    labels = list(labels) or [column for column, about in known.items() if about.get("_type") == "ClassLabel"]
    for column in (*fields.values(), *labels, *([group] if group else ())):
        if column not in known:
            raise UserError(f"{source}: no column `{column}`; there are {', '.join(known)}.")
    split = _splits(source, found)
    classes: dict[str, list[str]] = {}
    classify: dict[str, Callable[[Any], int | None]] = {}
    for number, column in enumerate(labels):
        label = "label" if number == 0 else column
        classes[label], classify[label] = _classes(known[column], found, column)
    marks = {table.path: stamp([str(table.path)]) for table in found}
    samples = spilled()
    for place in places(found, [*labels, *([group] if group else ())]):
        table, key = place.table, f"{safe_key(place.table.split)}-{place.number:08d}"
        read = (
            (label, index(place.values[column]))
            for (label, index), column in zip(classify.items(), labels, strict=True)
        )
        given = {label: index for label, index in read if index is not None}
        samples.append(
            Sample(
                key=key,
                group=_text(place.values[group]) or key if group else key,
                size=marks[table.path][0] // sum(table.groups),
                stamp=marks[table.path][1],
                arguments=[str(table.path), place.group, place.row],
                label=given.pop("label", None),
                labels=given,
                split=split[table.split],
                source=f"{table.path.relative_to(source)} {place.number}",
            )
        )
    return Plan(
        recipe="huggingface",
        name=name or source.resolve().name,
        options={"fields": fields, "labels": labels, "group": group},
        samples=samples,
        classes=classes,
        units=dict(unit for field, unit in UNITS.items() if field in fields),
        licence=licence,
        split_rule="given by the folder" if len(split) > 1 else None,
        make=partial(members, fields),
    )


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _by_kind(known: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Field -> the only column of its kind."""
    kinds: dict[str, list[str]] = {"rgb": [], "audio": [], "text": []}
    for column, about in known.items():
        one = about.get("feature", about)  # of a list
        kind = {"Image": "rgb", "Audio": "audio"}.get(about.get("_type", ""))
        kind = "text" if one.get("dtype") in ("string", "large_string") else kind
        if kind:
            kinds[kind].append(column)
    for field, of_kind in kinds.items():
        if len(of_kind) > 1:
            raise UserError(
                f"{field}: is it {' or '.join(of_kind)}? Say what is packed: `--field {field}={of_kind[0]}`."
            )
    chosen = {field: column for field, of_kind in kinds.items() for column in of_kind}
    if not chosen:
        raise UserError(
            f"no column is known to be image, sound or text; there are {', '.join(known)}. Say what is packed, as in "
            f"`--field rgb={next(iter(known))}`."
        )
    return chosen


def _splits(source: Path, found: Sequence[Table]) -> dict[str, str | None]:
    """The library's name of a split -> that of the shards; None for a single one, which the fractions cut."""
    names = {table.split for table in found}
    if len(names) == 1:
        return dict.fromkeys(names)
    if unknown := sorted(names - SPLITS.keys()):
        raise UserError(f"{source}: split `{unknown[0]}` is none of {', '.join(SPLITS)}; give the folder of one split.")
    return {name: SPLITS[name] for name in names}


def _classes(
    about: Mapping[str, Any], found: Sequence[Table], column: str
) -> tuple[list[str], Callable[[Any], int | None]]:
    """The names of the classes, and what makes a class of a value; None where it is none."""
    if names := about.get("names"):
        return list(names), lambda value: value if isinstance(value, int) and value >= 0 else None
    values = (place.values[column] for place in places(found, [column]))
    names = number_classes(str(value) for value in values if value is not None)
    numbers = {name: number for number, name in enumerate(names)}
    return names, lambda value: numbers.get(str(value))
