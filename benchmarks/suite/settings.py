"""A setting of the suite: a YAML with pairs, teacher, student and metric."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from benchmarks.matrix_data import write_table
from benchmarks.suite.tables import TABLES, Row
from pipeline import config as configs
from pipeline.config import Config
from pipeline.packing.pack import pack
from pipeline.packing.recipes import manifest

FOLDER = Path(__file__).parent / "settings"

Losses = dict[str, dict[str, Any]]


class Broken(BaseModel):
    """Mismatches a fraction of the training pairs: their `field` of the teacher comes from another pair."""

    model_config = ConfigDict(extra="forbid")
    share: float = Field(gt=0, le=1)
    field: str


class Setting(BaseModel):
    """The content of a YAML of the suite.

    Attributes:
        table: One of `benchmarks.suite.tables`, or a CSV with an id, a column of paths (or texts) per field, and
            columns for splitting.
        test: Column -> values of the test split.
        val: Column -> values of the validation split. The remaining samples are for training.
        fields: Field -> column.
        label: Column of the class; None if there are no labels.
        pairs: Number of training pairs of the student. The suite's own teachers are trained on all pairs, before any
            are mismatched.
        broken: Which pairs to mismatch; None means none.
        teacher: A complete config of the run that trains the teacher, or the section `teacher` for a pretrained one.
        student: The sections data, student and train.
        measure: Metric of the student on val and test. `probe`: trained without labels, then a linear probe on the
            frozen features with all training labels.
    """

    model_config = ConfigDict(extra="forbid")
    table: str
    test: dict[str, list[str]]
    val: dict[str, list[str]]
    fields: dict[str, str]
    label: str | None = None
    pairs: int | None = None
    broken: Broken | None = None
    teacher: dict[str, Any]
    student: dict[str, Any]
    measure: Literal["top1", "probe", "R@10"]

    @property
    def logits(self) -> bool:
        """Whether teacher and student have the same classes."""
        return "losses" in self.teacher

    @property
    def task(self) -> Losses:
        """The losses that need no teacher; empty if training uses no labels."""
        return {"cross_entropy": {}} if self.label and self.measure != "probe" else {}

    def whole(self, out: Path) -> Path:
        """Folder of all correct pairs and of the teacher that is trained on them. Settings may share it."""
        shared = self.model_dump_json(include={"table", "test", "val", "fields", "label", "teacher"})
        return out.parent / "whole" / sha256(shared.encode()).hexdigest()[:8]

    def shards(self, out: Path) -> Path:
        """The pairs of the students."""
        return (out if self.pairs or self.broken else self.whole(out)) / "data"

    def pack_whole(self, data: Path, out: Path) -> None:
        """Pack all correct pairs, unless this is already done."""
        self._pack(self._splits(data, out), self.whole(out) / "data")

    def pack(self, data: Path, out: Path) -> None:
        """Pack the pairs of the students, unless these are all pairs."""
        if self.shards(out).is_relative_to(self.whole(out)):
            return
        splits = self._splits(data, out)
        splits["train"] = splits["train"][: self.pairs]
        if self.broken:
            _break(splits["train"], self.broken)
        self._pack(splits, self.shards(out))

    def _splits(self, data: Path, out: Path) -> dict[str, list[Row]]:
        """The rows of the table by split, with the training rows in random order."""
        if self.table in TABLES:
            rows = TABLES[self.table](data, out.parent)
        else:
            with Path(self.table).open(newline="") as file:
                rows = list(csv.DictReader(file))
        splits: dict[str, list[Row]] = {"train": [], "val": [], "test": []}
        for row in rows:
            splits["test" if _holds(row, self.test) else "val" if _holds(row, self.val) else "train"].append(row)
        random.Random(0).shuffle(splits["train"])
        return splits

    def _pack(self, splits: Mapping[str, Sequence[Row]], folder: Path) -> None:
        rows = [row | {"split": split} for split, own in splits.items() for row in own]
        folder.parent.mkdir(parents=True, exist_ok=True)
        table = write_table(folder.with_suffix(".csv"), rows)
        plan = manifest.plan(table, self.fields, [self.label] if self.label else [], split="split", key="id")
        pack(plan, folder, max_refused=0, overwrite=True)

    def teacher_config(self, out: Path) -> Config | None:
        """The config of the run that trains the teacher; None for a pretrained teacher."""
        folder = self.whole(out)
        return _config(self.teacher | {"run": str(folder / "teacher")}, folder / "data") if self.logits else None

    def student_config(self, out: Path, method: str, losses: Losses, seed: int) -> Config:
        """The config of one student."""
        teacher = {"run": str(self.whole(out) / "teacher")} if self.logits else self.teacher
        own = {"run": str(out / f"{method}_seed{seed}"), "seed": seed, "teacher": teacher, "losses": losses}
        # Without the guard, since variants must work without it.
        own["train"] = self.student.get("train", {}) | {"guard": False}
        return _config(self.student | own, self.shards(out))


def _break(rows: Sequence[Row], broken: Broken) -> None:
    """Rotate a field among the first rows: each gets the value of the next row."""
    rows = rows[: round(broken.share * len(rows))]
    others = [row[broken.field] for row in rows]
    for row, other in zip(rows, others[1:] + others[:1], strict=True):
        row[broken.field] = other


def _holds(row: Row, wanted: Mapping[str, Sequence[str]]) -> bool:
    return all(row[column] in values for column, values in wanted.items())


def _config(written: dict[str, Any], shards: Path) -> Config:
    written = written | {"data": {"shards": str(shards), "workers": 0, **written.get("data", {})}}
    path = Path(f"{written['run']}.yaml")  # unique, since other processes write theirs
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(written))  # JSON is valid YAML
    return configs.load(path)


def load_settings(names: Sequence[str] = (), folder: Path = FOLDER) -> dict[str, Setting]:
    """Load the settings in a folder by name: all, or the requested ones."""
    files = {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    if unknown := set(names) - set(files):
        raise SystemExit(f"unknown settings: {', '.join(sorted(unknown))}; choose from: {', '.join(files)}")
    return {name: Setting(**yaml.safe_load(files[name].read_text())) for name in names or files}
