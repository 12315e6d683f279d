"""The recipe `manifest`: a CSV or JSONL table with a row per sample, whose columns say where its files are."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.members import member_name
from pipeline.recipes import (
    UNITS,
    Plan,
    Refusal,
    Sample,
    check_unique,
    number_classes,
    refusal,
    safe_key,
    sift,
    stamp,
)
from pipeline.recipes.partners import PREFIX, with_partners
from pipeline.recipes.table import Row, Template, cell, read_table
from pipeline.splits import SPLITS


def plan(
    manifest: str | Path,
    fields: Mapping[str, str],
    labels: Sequence[str] = (),
    group: str | None = None,
    split: str | None = None,
    key: str | None = None,
    classes: Sequence[str] | None = None,
    name: str | None = None,
    licence: str = "not stated",
    partners: str | Path | None = None,
    seed: int = 0,
) -> Plan:
    """Plan a data set from a table.

    fields: field -> column, or a template over columns: `{"rgb": "hand_rgb/{id}.jpg"}`. Paths are relative to the
        table's folder and stay in it; absolute ones count as meant. An empty column: the sample lacks the field.
        `text` is the caption itself unless it ends in `.txt`; a list of captions in JSONL becomes one a line.
    labels: columns of class names or numbers; the first becomes `label.txt`, others `labels` in `meta.json`.
        An empty cell: unlabelled. Classes are the distinct values, sorted (numbers as numbers).
    group: column or template of what must stay in one split; None makes every sample its own group.
    split: column that holds train, val or test; None leaves it to the fractions.
    key: column or template that names samples; by default the column `id`, else the path of the first file.
    partners: a second table, of which every row gets a partner of its class and split, chosen by seed (see
        `pipeline.recipes.partners`); its columns are `partner.NAME`, their paths relative to its own folder.
    classes: names of the first label in order; a number is then an index, and other values are refused.

    Raises UserError for a table or template that cannot be read; single rows at fault are listed in `refused`.
    """
    path = Path(manifest)
    rows, broken = read_table(path)
    if partners is not None:
        if not labels or not split:
            raise UserError("partners: pairs are made by class and inside a split; name both columns (label, split).")
        rows, alone = with_partners(rows, Path(partners), labels[0], split, seed)
        broken += alone
    columns = sorted({column for _, row in rows for column in row})
    if not fields:
        raise UserError("no fields: say where the files are, e.g. `--field rgb=photos/{id}.jpg`.")
    key_column = key or ("id" if "id" in columns else None)
    label_columns = _label_columns(labels, columns, classes)
    names = {label: number_classes(_values(rows, column)) for label, column in label_columns.items()}
    if classes:
        names["label"] = list(classes)
    reader = _Reader(
        folder=path.parent,
        partners=Path(partners).parent if partners is not None else path.parent,
        fields={field: Template(text, columns, f"field {field}") for field, text in fields.items()},
        key=Template(key_column, columns, "key") if key_column else None,
        group=Template(group, columns, "group") if group else None,
        split=Template(split, columns, "split") if split else None,
        labels=label_columns,
        numbers={label: _numbers(known, label == "label" and bool(classes)) for label, known in names.items()},
    )
    samples, refused = sift(reader.read(row, where) for where, row in rows)
    check_unique(samples)
    return Plan(
        recipe="manifest",
        name=name or path.resolve().parent.name,
        options={"fields": dict(fields), "labels": list(labels), "group": group, "split": split, "key": key}
        | ({"partners": str(partners), "pairing": seed} if partners is not None else {}),
        samples=samples,
        refused=broken + refused,
        classes=names,
        units=dict(unit for field, unit in UNITS.items() if field in fields),
        licence=licence,
        split_rule=f"given by column `{split}`" if split else None,
    )


@dataclass(frozen=True)
class _Reader:
    """What the user asked for, resolved against the table's columns: it turns a row into a sample."""

    folder: Path
    partners: Path
    fields: Mapping[str, Template]
    key: Template | None
    group: Template | None
    split: Template | None
    labels: Mapping[str, str]
    numbers: Mapping[str, Mapping[str, int]]

    def read(self, row: Row, where: str) -> Sample | Refusal:
        key = ""
        try:
            key, source = self._identify(row, where)
            return self._sample(row, key, source)
        except (ValueError, OSError) as error:
            return refusal(key, where, error)

    def _sample(self, row: Row, key: str, source: str) -> Sample:
        """Raises ValueError for a value that cannot be used, OSError for a file that is not there."""
        files, texts = self._members(row)
        numbers = {label: _number(cell(row, column), self.numbers[label]) for label, column in self.labels.items()}
        label = numbers.pop("label", None)
        size, mark = stamp(files.values())
        return Sample(
            key=key,
            group=(self.group(row) if self.group else "") or key,
            size=size + sum(map(len, texts.values())),
            stamp=mark,
            files=files,
            texts=texts,
            label=label,
            labels={label: number for label, number in numbers.items() if number is not None},
            split=_split(self.split(row)) if self.split else None,
            source=source,
        )

    def _identify(self, row: Row, where: str) -> tuple[str, str]:
        """A row's key, and what people know it by. ValueError for a column that holds no text."""
        if self.key:
            source = self.key(row) or where
        else:
            paths = (template(row) for field, template in self.fields.items() if field != "text")
            source = next((os.path.splitext(path)[0] for path in paths if path), where)  # noqa: PTH122 - any text, no path yet
        return safe_key(source), source

    def _members(self, row: Row) -> tuple[dict[str, str], dict[str, str]]:
        """Member -> path, and member -> text where the table holds the text itself."""
        files: dict[str, str] = {}
        texts: dict[str, str] = {}
        for field, template in self.fields.items():
            value = template(row)
            if field == "text" and value and not value.lower().endswith(".txt"):
                texts["text.txt"] = value
            elif value:
                folder = self.partners if any(n.startswith(PREFIX) for n in template.names) else self.folder
                files[member_name(field, value)] = self._path(value, folder)
        if not files and not texts:
            raise ValueError("all its fields are empty")
        return files, texts

    def _path(self, value: str, folder: Path) -> str:
        if os.pardir in Path(os.path.normpath(value)).parts[:1]:
            raise ValueError(f"`{value}` leaves the table's folder; write an absolute path if that is meant")
        return str(folder / value)


def _label_columns(labels: Sequence[str], columns: Sequence[str], classes: Sequence[str] | None) -> dict[str, str]:
    """Label name -> column: the first column is `label`, others keep their own name."""
    for column in labels:
        if column not in columns:
            raise UserError(f"label: no column `{column}`; there are {', '.join(columns)}.")
    names = {("label" if number == 0 else column): column for number, column in enumerate(labels)}
    if len(names) < len(labels):
        raise UserError(f"labels {', '.join(labels)}: each once, and only the first may be called `label`.")
    if classes and not labels:
        raise UserError("classes are given without a label: say which column holds it, e.g. `--label class`.")
    return names


def _values(rows: Iterable[tuple[str, Row]], column: str) -> Iterator[str]:
    cells = (row.get(column, "") for _, row in rows)
    values = (value.strip() for value in cells if isinstance(value, str))
    return (value for value in values if value and not _is_negative(value))


def _numbers(names: Sequence[str], fixed: bool) -> dict[str, int]:
    """Class name -> index; where the classes were given, also index as text -> index, unless it is a name."""
    by_index = {str(number): number for number in range(len(names))} if fixed else {}
    return by_index | {name: number for number, name in enumerate(names)}


def _number(value: str, numbers: Mapping[str, int]) -> int | None:
    value = value.strip()
    if not value:
        return None
    if _is_negative(value):
        raise ValueError(f"label {value} is out of range: classes count from 0; leave it empty where there is none")
    if value not in numbers:
        known = ", ".join(list(numbers)[:12]) + (", ..." if len(numbers) > 12 else "")
        raise ValueError(f"label `{value}` is unknown; the classes are {known}")
    return numbers[value]


def _is_negative(value: str) -> bool:
    return value[0] == "-" and value[1:].isdecimal()


def _split(value: str) -> str:
    if value.strip() not in SPLITS:
        raise ValueError(f"split `{value}` is none of {', '.join(SPLITS)}")
    return value.strip()
