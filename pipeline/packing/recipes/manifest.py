"""The recipe `manifest`: a CSV or JSONL table with one row per sample and columns for its files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.file_names import nfc, on_disk
from pipeline.data.label_column import LabelColumn, is_negative
from pipeline.data.member_formats import member_name
from pipeline.packing.recipes.partners import PREFIX, with_partners
from pipeline.packing.recipes.plan import (
    UNITS,
    Plan,
    Refusal,
    SourceSample,
    check_unique,
    refusal,
    safe_key,
    sift,
    stamp,
)
from pipeline.packing.recipes.same_files import one_sample_per_file
from pipeline.packing.recipes.table import Row, Rows, Template, cell, read_table
from pipeline.packing.splits import SPLITS


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
    """Plan a dataset from a table. Invalid rows are rejected.

    Rows that differ only in their caption become one sample with several captions. Other rows with the same first file
    form a group, unless `group` or `split` is set.

    Args:
        manifest: The CSV or JSONL file.
        fields: Field -> column, or a template over columns: `{"rgb": "hand_rgb/{id}.jpg"}`. Paths are relative to the
            folder of the table and must stay in it; absolute paths are allowed. If the column is empty, the sample
            lacks the field. For the field `text`, the value is the caption itself unless it ends in `.txt`; a list of
            captions in JSONL becomes one caption per line.
        labels: Columns of class names or numbers. The first becomes `label.txt`, others become `labels` in
            `meta.json`. An empty cell means unlabelled. Classes are the distinct values, sorted (numbers as numbers).
        group: Column or template of groups, which stay in one split. With None, every sample is a separate group.
        split: Column with train, val or test. With None, samples are divided by the fractions.
        key: Column or template of sample keys. Default: the column `id`, or else the path of the first file.
        classes: Class names of the first label, in order. Numbers are then class indices; unknown values are rejected.
        name: Name of the dataset; None means the name of the folder.
        licence: Licence of the data.
        partners: A second table. Every row is paired with one of its rows of the same class and split (see
            `pipeline.packing.recipes.partners`). Its columns are `partner.NAME`; its paths are relative to its folder.
        seed: Random seed for choosing partners.

    Raises:
        UserError: A table or template is invalid.
    """
    path, labels, classes = Path(manifest), list(map(nfc, labels)), list(map(nfc, classes or ()))
    rows, broken = _read_rows(path, partners, labels, split, seed)
    columns = sorted({column for _, row in rows for column in row})
    templates = _templates(fields, columns)
    known = _Labels.of(rows, labels, columns, classes)
    reader = _Reader.of(path, partners, templates, columns, key, group, split, known)
    samples, refused = sift(reader.read(row, where) for where, row in rows)
    samples = one_sample_per_file(samples, grouped=group is not None)
    check_unique(samples)
    return Plan(
        recipe="manifest",
        name=name or path.resolve().parent.name,
        options={"fields": dict(fields), "labels": list(labels), "group": group, "split": split, "key": key}
        | ({"partners": str(partners), "pairing": seed} if partners is not None else {}),
        samples=samples,
        refused=broken + refused,
        classes=known.names,
        units=dict(unit for field, unit in UNITS.items() if field in fields),
        licence=licence,
        split_rule=f"given by column `{split}`" if split else None,
    )


def _read_rows(
    path: Path, partners: str | Path | None, labels: Sequence[str], split: str | None, seed: int
) -> tuple[Rows, list[Refusal]]:
    """The rows of the table with their positions and partners, and the rows that cannot be read or paired."""
    rows, broken = read_table(path)
    if partners is None:
        return rows, broken
    if not labels or not split:
        raise UserError("partners: rows are paired by class and split; set both columns (label and split).")
    rows, alone = with_partners(rows, Path(partners), labels[0], split, seed)
    return rows, broken + alone


def _templates(fields: Mapping[str, str], columns: Sequence[str]) -> dict[str, Template]:
    if not fields:
        raise UserError("no fields: specify each field and its path, e.g. `--field rgb=photos/{id}.jpg`.")
    return {field: Template(text, columns, f"field {field}") for field, text in fields.items()}


def _key(key: str | None, columns: Sequence[str]) -> Template | None:
    """The template of sample keys; by default the column `id`, if it exists."""
    text = key or ("id" if "id" in columns else None)
    return Template(text, columns, "key") if text else None


@dataclass(frozen=True)
class _Labels:
    """The labels of the table: by name, how a value is read, the class names in order, and class name -> index."""

    columns: Mapping[str, LabelColumn]
    names: dict[str, list[str]]
    numbers: Mapping[str, Mapping[str, int]]

    @classmethod
    def of(cls, rows: Rows, labels: Sequence[str], columns: Sequence[str], classes: list[str]) -> _Labels:
        """Look at all rows, and say which values are read otherwise than they are written."""
        found = {
            label: LabelColumn.of(column, _cells(rows, column), classes if label == "label" else ())
            for label, column in _label_columns(labels, columns, classes).items()
        }
        for column in found.values():
            column.say()
        names = {label: list(column.names) for label, column in found.items()}
        names |= {"label": classes} if classes else {}
        numbers = {label: _numbers(own, label == "label" and bool(classes)) for label, own in names.items()}
        return cls(found, names, numbers)

    def read(self, row: Row) -> dict[str, int | None]:
        """Label -> class index. Raises ValueError for an unknown class."""
        return {
            label: _number(column.read(cell(row, column.name)), self.numbers[label])
            for label, column in self.columns.items()
        }


@dataclass(frozen=True)
class _Reader:
    """The settings of the recipe, resolved for the columns of the table. Makes a sample from a row."""

    folder: Path
    partners: Path
    fields: Mapping[str, Template]
    key: Template | None
    group: Template | None
    split: Template | None
    labels: _Labels

    @classmethod
    def of(
        cls,
        path: Path,
        partners: str | Path | None,
        fields: Mapping[str, Template],
        columns: Sequence[str],
        key: str | None,
        group: str | None,
        split: str | None,
        labels: _Labels,
    ) -> _Reader:
        """Resolve the templates for the columns of the table."""
        return cls(
            folder=path.parent,
            partners=Path(partners).parent if partners is not None else path.parent,
            fields=fields,
            key=_key(key, columns),
            group=Template(group, columns, "group") if group else None,
            split=Template(split, columns, "split") if split else None,
            labels=labels,
        )

    def read(self, row: Row, where: str) -> SourceSample | Refusal:
        key = ""
        try:
            key, source = self._identify(row, where)
            return self._sample(row, key, source)
        except (ValueError, OSError) as error:
            return refusal(key, where, error)

    def _sample(self, row: Row, key: str, source: str) -> SourceSample:
        """Raises ValueError for an invalid value, OSError for a missing file."""
        files, texts = self._members(row)
        numbers = self.labels.read(row)
        label = numbers.pop("label", None)
        size, mark = stamp(files.values())
        return SourceSample(
            key=key,
            group=nfc(self.group(row) if self.group else "") or key,
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
        """The key of a row, and its readable name. Raises ValueError for a column that is not text."""
        if self.key:
            source = self.key(row) or where
        else:
            paths = (template(row) for field, template in self.fields.items() if field != "text")
            source = next((os.path.splitext(path)[0] for path in paths if path), where)  # noqa: PTH122 - may be any text
        return safe_key(source), source

    def _members(self, row: Row) -> tuple[dict[str, str], dict[str, str]]:
        """Member -> path, and member -> text where the table contains the text itself."""
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
            raise ValueError(f"`{value}` is outside the folder of the table; use an absolute path if this is intended")
        return str(on_disk(folder / value))


def _label_columns(labels: Sequence[str], columns: Sequence[str], classes: Sequence[str] | None) -> dict[str, str]:
    """Label name -> column: the first column becomes `label`, all others keep their names."""
    for column in labels:
        if column not in columns:
            raise UserError(f"label: no column `{column}`; the columns are {', '.join(columns)}.")
    names = {("label" if number == 0 else column): column for number, column in enumerate(labels)}
    if len(names) < len(labels):
        raise UserError(f"labels {', '.join(labels)}: names must be unique, and only the first one may be `label`.")
    if classes and not labels:
        raise UserError("classes are set, but there is no label column; add one, e.g. `--label class`.")
    return names


def _cells(rows: Rows, column: str) -> Iterator[str]:
    cells = (row.get(column, "") for _, row in rows)
    return (cell for cell in cells if isinstance(cell, str))


def _numbers(names: Sequence[str], fixed: bool) -> dict[str, int]:
    """Class name -> index; if `classes` is set, also index as text -> index, unless this text is a class name."""
    by_index = {str(number): number for number in range(len(names))} if fixed else {}
    return by_index | {name: number for number, name in enumerate(names)}


def _number(value: str, numbers: Mapping[str, int]) -> int | None:
    if not value:
        return None
    if is_negative(value):
        raise ValueError(
            f"label {value} is out of range: classes start at 0; leave the cell empty if there is no label"
        )
    if value not in numbers:
        known = ", ".join(list(numbers)[:12]) + (", ..." if len(numbers) > 12 else "")
        raise ValueError(f"label `{value}` is unknown; the classes are {known}")
    return numbers[value]


def _split(value: str) -> str:
    if value.strip() not in SPLITS:
        raise ValueError(f"split `{value}` is not one of {', '.join(SPLITS)}")
    return value.strip()
