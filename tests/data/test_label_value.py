"""Labels in shards of others: `cls`, or a value inside JSON."""

from __future__ import annotations

import json

import pytest

from pipeline.data.label_value import LARGEST, ForeignLabel, LabelValue, class_names

DOCUMENT = b'{"category": "cat", "labels": {"color": 3, "wild": true}, "weights": [0.5], "width": 1.5}'


@pytest.mark.parametrize(
    ("label", "value"),
    [("json:category", "cat"), ("json:labels.color", "3"), ("json:labels.wild", "True")],
)
def test_a_value_inside_json(label: str, value: str) -> None:
    assert LabelValue.parse(label).read(DOCUMENT) == value


def test_a_whole_member() -> None:
    assert LabelValue.parse("cls").read(b" 7\n") == "7"
    assert LabelValue.parse("class.txt").read("köttur".encode()) == "köttur"


@pytest.mark.parametrize(
    ("label", "data", "message"),
    [
        ("json:colour", DOCUMENT, "no value at colour"),
        ("json:labels.color.hue", DOCUMENT, "no value at labels.color.hue"),
        ("json:labels", DOCUMENT, "neither a string nor a whole number"),
        ("json:width", DOCUMENT, "neither a string nor a whole number"),
        ("json:weights", DOCUMENT, "neither a string nor a whole number"),
        ("json:weights.0", DOCUMENT, "no value at weights.0"),
        ("json:a", b"[" * 100_000, "not JSON"),
        ("json:a", b"{", "Expecting"),
        ("json:a", b"7", "no value at a"),
        ("cls", b"\xff\xfe", "codec"),
        ("cls", bytes(LARGEST + 1), "the maximum for a label is"),
    ],
)
def test_what_is_no_label_says_why(label: str, data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelValue.parse(label).read(data)


@pytest.mark.parametrize("value", [None, float("nan"), "", " ", "NaN", "nan", "None", "NA", "<NA>", -1, -1.0, "-1"])
def test_no_value_is_no_label(value: object) -> None:
    label = ForeignLabel(LabelValue.parse("json:kind"), ("0", "1"))
    assert label.index(json.dumps({"kind": value}).encode()) == -1


@pytest.mark.parametrize("value", [1, 1.0, "1", "1.0", "01", " 1 ", "+1"])
def test_one_class_has_many_spellings(value: object) -> None:
    member = json.dumps({"kind": value}).encode()
    where = LabelValue.parse("json:kind")
    assert class_names([where.read(member), "3"]) == ["0", "1", "2", "3"]
    assert ForeignLabel(where, ("0", "1", "2", "3")).index(member) == 1
    assert ForeignLabel(where, ("1", "3")).index(member) == 0


def test_given_names_are_names_whatever_they_look_like() -> None:
    label = ForeignLabel(LabelValue("cls"), ("NA", "EU", "01"))
    assert [label.index(text) for text in (b"NA", b"01", b"1", b"None")] == [0, 2, 1, -1]


def test_values_become_classes() -> None:
    assert class_names(["3", "0", "1"]) == ["0", "1", "2", "3"]
    assert class_names(["cup", "bowl"]) == ["bowl", "cup"]
    assert class_names(["10", "cup"]) == ["10", "cup"]
    assert class_names(["3.0", "", "01", "-1", "nan"]) == ["0", "1", "2", "3"]
    assert class_names(["1.0", "cat", "None"]) == ["1.0", "cat"]
    assert class_names(["123456789.0", "99999999", "3"]) == ["3", "99999999", "123456789"]
    assert class_names(["123456789"]) == ["123456789"]  # an identifier, not the number of a class
    assert class_names([]) == []


def test_a_value_is_the_name_or_the_number_of_a_class() -> None:
    label = ForeignLabel(LabelValue("cls"), ("cup", "bowl", "2"))
    assert [label.index(text) for text in (b"bowl", b"0", b"2", b"1", b" 1.0\n", b"01")] == [1, 0, 2, 1, 1, 1]
    assert [label.index(text) for text in (b"", b"-1", b"-1.0", b"NaN", b"None", b"NA", b" ")] == [-1] * 7
    for wrong in (b"3", b"-2", b"plate", b"1.5", b"3.0"):
        with pytest.raises(ValueError, match="neither the name nor the index of one of the 3 classes"):
            label.index(wrong)
