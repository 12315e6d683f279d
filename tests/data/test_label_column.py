"""Labels as spreadsheets and pandas leave them."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.common.errors import UserError
from pipeline.data.label_column import MISSING, LabelColumn, sort_classes
from pipeline.packing.recipes import manifest


@pytest.mark.parametrize(
    ("cells", "read"),
    [
        (["1", "1.0", "01", " 1 ", "+1"], ["1"] * 5),
        (["1", "-1", "-1.0", "nan"], ["1", "", "", ""]),
        (["cat", "1.0", "None", "-1"], ["cat", "1.0", "", ""]),  # not all are numbers: names stay as they are
        (["0.5", "1.0"], ["0.5", "1.0"]),
        (["none", "na"], ["none", "na"]),  # not among pandas' missing values
    ],
)
def test_cells(cells: list[str], read: list[str]) -> None:
    column = LabelColumn.of("label", cells)
    assert [column.read(cell) for cell in cells] == read


def test_numbers_sort_as_numbers() -> None:
    assert LabelColumn.of("label", ["10.0", "2", "-1", "NA", "-5", "03"]).names == ("2", "3", "10")
    assert sort_classes(["1000000000002", "3", "20"]) == ["3", "20", "1000000000002"]
    assert sort_classes(["b10", "b9", "3"]) == ["3", "b10", "b9"]


def test_missing_values_are_no_class() -> None:
    column = LabelColumn.of("label", [*MISSING, "cup"])
    assert {column.read(cell) for cell in MISSING} == {""}


def test_a_given_class_is_one_whatever_it_looks_like() -> None:
    column = LabelColumn.of("label", ["NA", "EU", "01"], ["NA", "EU", "01"])
    assert [column.read(cell) for cell in ("NA", "EU", "01")] == ["NA", "EU", "01"]


@pytest.mark.parametrize("label", [lambda n: f"{n % 12}.0", lambda n: str(n % 12) + ".0" * (n > 15)])
def test_floats_of_pandas_are_classes_in_the_order_of_numbers(tmp_path: Path, label: object, caplog: object) -> None:
    assert callable(label)
    assert isinstance(caplog, pytest.LogCaptureFixture)
    caplog.set_level(logging.INFO)
    cv2.imwrite(str(tmp_path / "0.jpg"), np.zeros((8, 8, 3), np.uint8))
    for n in range(1, 30):
        (tmp_path / f"{n}.jpg").write_bytes((tmp_path / "0.jpg").read_bytes())
    rows = (f"{n}.jpg,{label(n) if n % 5 else '-1.0'}\n" for n in range(30))
    (tmp_path / "t.csv").write_text("file,label\n" + "".join(rows))
    plan = manifest.plan(tmp_path / "t.csv", {"rgb": "file"}, ["label"])
    assert plan.classes == {"label": [str(n) for n in range(12)]}
    assert [sample.label for sample in plan.samples if sample.label is None] == [None] * 6
    assert "`-1.0` is read as no label" in caplog.text
    assert "is read as the whole number" in caplog.text


def test_other_negative_numbers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\na,-2\nb,1\n")
    plan = manifest.plan(tmp_path / "t.csv", {"text": "text"}, ["label"])
    assert [r.reason for r in plan.refused] == [
        "label -2 is out of range: classes start at 0; leave the cell empty if there is no label"
    ]
    with pytest.raises(UserError, match="no column"):
        manifest.plan(tmp_path / "t.csv", {"text": "text"}, ["lable"])
