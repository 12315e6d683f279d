"""Labels in shards of others: `cls`, or a value inside JSON."""

from __future__ import annotations

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
        ("json:labels", DOCUMENT, "neither a string nor an integer"),
        ("json:width", DOCUMENT, "neither a string nor an integer"),
        ("json:weights", DOCUMENT, "neither a string nor an integer"),
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


def test_values_become_classes() -> None:
    assert class_names(["3", "0", "1"]) == ["0", "1", "2", "3"]
    assert class_names(["cup", "bowl"]) == ["bowl", "cup"]
    assert class_names(["10", "cup"]) == ["10", "cup"]
    assert class_names(["123456789"]) == ["123456789"]  # an identifier, not the number of a class
    assert class_names([]) == []


def test_a_value_is_the_name_or_the_number_of_a_class() -> None:
    label = ForeignLabel(LabelValue("cls"), ("cup", "bowl", "2"))
    assert [label.index(text) for text in (b"bowl", b"0", b"2", b"1")] == [1, 0, 2, 1]
    for wrong in (b"3", b"-1", b"plate", b"1.0", b""):
        with pytest.raises(ValueError, match="neither the name nor the index of one of the 3 classes"):
            label.index(wrong)
