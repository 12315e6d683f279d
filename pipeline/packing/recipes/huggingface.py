"""The recipe `huggingface`: a folder written by `save_to_disk` of the `datasets` library, or Parquet files.

The Parquet files may be on the Hugging Face Hub; see `hub_files`. Only pyarrow is required. Photos, depth maps and
audio files that are embedded in the tables are packed unchanged. Files that a table only refers to are never opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.data.label_column import LabelColumn
from pipeline.packing.recipes.arrow import SPLITS, Table, columns, members, places, tables
from pipeline.packing.recipes.hub_files import download, is_on_hub
from pipeline.packing.recipes.plan import UNITS, Plan, SourceSample, safe_key, spilled, stamp

Classify = Callable[[Any], int | None]
"""Maps a value to its class index, or to None if it is unlabelled."""


def plan(
    source: str | Path,
    fields: Mapping[str, str] | None = None,
    labels: Sequence[str] = (),
    group: str | None = None,
    name: str | None = None,
    licence: str | None = None,
) -> Plan:
    """Plan a dataset from a folder of the `datasets` library, or from the Hub.

    Existing splits are kept. A single split is divided by the fractions.

    Args:
        source: The folder, or `hub:OWNER/NAME` with `@REVISION` and `/CONFIGURATION` as needed.
        fields: Field -> column. By default, the image column becomes `rgb`, the audio column `audio` and the string
            column `text`, if there is only one of each.
        labels: Class columns; the first one is the task. By default, all ClassLabel columns.
        group: Column of groups, which stay in one split. With None, or if the cell is empty, a row is a separate group.
        name: Name of the dataset; None means the name of the folder or of the dataset on the Hub.
        licence: Licence of the data; None means the one that the Hub states, if any.

    Raises:
        UserError: The folder has no tables, or a column is missing or ambiguous.
    """
    hub = download(str(source)) if is_on_hub(source) else None
    folder = hub.folder if hub else Path(source)
    found = tables(folder, hub.files if hub else ())
    known = columns(found)
    fields = dict(fields) if fields else _by_kind(known)
    labels = list(labels) or [column for column, about in known.items() if about.get("_type") == "ClassLabel"]
    for column in (*fields.values(), *labels, *([group] if group else ())):
        if column not in known:
            raise UserError(f"{source}: there is no column `{column}`; the columns are {', '.join(known)}.")
    split = _splits(str(source), found)
    names = {column: "label" if number == 0 else column for number, column in enumerate(labels)}
    classified = {column: _classes(known[column], found, column) for column in labels}
    indices = {column: (names[column], index) for column, (_, index) in classified.items()}
    return Plan(
        recipe="huggingface",
        name=name or (hub.name if hub else folder.resolve().name),
        options={"fields": fields, "labels": labels, "group": group} | ({"source": hub.source} if hub else {}),
        samples=spilled(_samples(folder, found, indices, group, split, hub.commit if hub else None)),
        classes={names[column]: own for column, (own, _) in classified.items()},
        units=dict(unit for field, unit in UNITS.items() if field in fields),
        licence=licence or (hub.licence if hub else "not stated"),
        split_rule=f"given by the {'hub' if hub else 'folder'}" if len(split) > 1 else None,
        source=hub.source if hub else "",
        make=partial(members, fields),
    )


def _samples(
    source: Path,
    found: Sequence[Table],
    labels: Mapping[str, tuple[str, Classify]],
    group: str | None,
    split: Mapping[str, str | None],
    commit: str | None,
) -> Iterator[SourceSample]:
    """Yield a sample for each row.

    Args:
        source: The folder.
        found: Its tables.
        labels: Column -> name of the label, and the function that finds its class index.
        group: Column of groups.
        split: Split in the library -> split in the shards.
        commit: The commit on the Hub, which stands for the content: times of downloaded files differ.
    """
    marks = {table.path: stamp([str(table.path)]) for table in found}
    if commit is not None:
        marks = {path: (size, commit) for path, (size, _) in marks.items()}
    for place in places(found, [*labels, *([group] if group else ())]):
        table, key = place.table, f"{safe_key(place.table.split)}-{place.number:08d}"
        read = ((label, classify(place.values[column])) for column, (label, classify) in labels.items())
        given = {label: index for label, index in read if index is not None}
        yield SourceSample(
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


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _by_kind(known: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Field -> the only column of its kind."""
    kinds: dict[str, list[str]] = {"rgb": [], "audio": [], "text": []}
    for column, about in known.items():
        one = about.get("feature", about)  # the element type of a list
        kind = {"Image": "rgb", "Audio": "audio"}.get(about.get("_type", ""))
        kind = "text" if one.get("dtype") in ("string", "large_string") else kind
        if kind:
            kinds[kind].append(column)
    for field, of_kind in kinds.items():
        if len(of_kind) > 1:
            raise UserError(
                f"{field}: several columns match: {', '.join(of_kind)}. Choose one: `--field {field}={of_kind[0]}`."
            )
    chosen = {field: column for field, of_kind in kinds.items() for column in of_kind}
    if not chosen:
        raise UserError(
            f"found no image, audio or text column; the columns are {', '.join(known)}. Choose the columns to pack, "
            f"as in `--field rgb={next(iter(known))}`."
        )
    return chosen


def _splits(source: str, found: Sequence[Table]) -> dict[str, str | None]:
    """Split name in the library -> split name in the shards; None for a single split, which fractions divide."""
    names = {table.split for table in found}
    if len(names) == 1:
        return dict.fromkeys(names)
    if unknown := sorted(names - SPLITS.keys()):
        raise UserError(
            f"{source}: unknown split `{unknown[0]}`; expected {', '.join(SPLITS)}. Use a folder with one split."
        )
    return {name: SPLITS[name] for name in names}


def _classes(about: Mapping[str, Any], found: Sequence[Table], column: str) -> tuple[list[str], Classify]:
    """The names of the classes, and a function from a value to its class index or None."""
    if names := about.get("names"):
        return list(names), lambda value: value if isinstance(value, int) and value >= 0 else None
    values = (place.values[column] for place in places(found, [column]))
    read = LabelColumn.of(column, {str(value) for value in values if value is not None})
    read.say()
    numbers = {name: number for number, name in enumerate(read.names)}
    return list(read.names), lambda value: numbers.get(read.read(str(value)))
