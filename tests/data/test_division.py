"""Splits inside shards: by a hash of the key or of the group."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from pydantic import ValidationError

from pipeline.data.division import Division

KEYS = [f"{number:09d}" for number in range(4000)]


def test_shares_are_of_the_samples_and_the_same_each_time() -> None:
    division = Division(shares={"test": 0.2, "val": 0.1})
    splits = {key: division.split_of(key, {}) for key in KEYS}
    counts = Counter(splits.values())
    assert counts["test"] == pytest.approx(800, abs=100)
    assert counts["val"] == pytest.approx(400, abs=80)
    again = Division.model_validate_json(division.model_dump_json())
    assert splits == {key: again.split_of(key, {"cls": b"1"}) for key in reversed(KEYS)}


def test_a_larger_share_keeps_what_was_held_out() -> None:
    small, large = ({k for k in KEYS if Division(shares={"test": s}).split_of(k, {}) == "test"} for s in (0.1, 0.3))
    assert small < large


def test_a_group_is_never_divided() -> None:
    division = Division(shares={"test": 0.3}, group="json:clip")
    assert division.member == "json"
    found: dict[int, set[str]] = {}
    for number, key in enumerate(KEYS):
        held = {"json": json.dumps({"clip": number // 8}).encode(), "jpg": None}
        found.setdefault(number // 8, set()).add(division.split_of(key, held))
    assert all(len(splits) == 1 for splits in found.values())
    assert {split for splits in found.values() for split in splits} == {"train", "test"}


def test_a_sample_without_a_group_is_its_own() -> None:
    by_key, by_group = Division(shares={"test": 0.3}), Division(shares={"test": 0.3}, group="json:clip")
    for held in ({}, {"json": None}, {"json": b"{}"}, {"json": b"{"}):
        assert [by_group.split_of(key, held) for key in KEYS[:50]] == [by_key.split_of(key, {}) for key in KEYS[:50]]


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
def test_what_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(ValidationError):
        Division(shares={"test": share})
