"""Whole groups only, and every class near its share of each split."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from sources import (
    CLASSES,
    make_source,
    plan_of,
    refusals,
    samples_in,
    with_column,
)

from pipeline.common.errors import UserError
from pipeline.packing import splits
from pipeline.packing.pack import pack
from pipeline.packing.recipes.plan import SourceSample

# Splits.


def by_group(samples: Sequence[SourceSample], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """Group -> split; a group has one."""
    found: dict[str, set[str]] = defaultdict(set)
    for sample, place in zip(samples, splits.assign(samples, fractions, seed).places, strict=True):
        found[sample.group].add(splits.SPLITS[place])
    return {group: split for group, (split,) in found.items()}


def in_memory(samples: Sequence[SourceSample], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """Oracle: the rule with dicts and lists. fractions: the largest first."""
    groups: dict[str, Counter[int | None]] = defaultdict(Counter)
    for sample in samples:
        groups[sample.group][sample.label] += 1
    total: Counter[int | None] = sum(groups.values(), Counter())
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    order.sort(key=lambda group: -groups[group].total().bit_length())
    have: dict[str, Counter[int | None]] = {split: Counter() for split in fractions}
    placed: dict[str, str] = {}
    for group in order:
        counts = groups[group]
        filled = {
            split: sum(n * have[split][c] / (share * total[c]) for c, n in counts.items()) / counts.total()
            for split, share in fractions.items()
        }
        placed[group] = max(fractions, key=lambda split: 1 - filled[split])
        have[placed[group]] += counts
    return placed


def random_samples(seed: int) -> list[SourceSample]:
    """Groups of 1 to 30 samples; every other dataset has groups that mix classes."""
    rng = np.random.default_rng(seed)
    found = []
    for group in range(int(rng.integers(12, 60))):
        for n in range(int(rng.integers(1, 31))):
            label = int(rng.integers(3)) if seed % 2 else group % 3
            found.append(SourceSample(f"{group}-{n}", str(group), 1, "", label=None if n % 7 == 6 else label))
    return found


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("fractions", [{"train": 0.8, "test": 0.2}, {"train": 0.6, "val": 0.1, "test": 0.3}])
def test_groups_stay_whole_and_classes_near_their_share(seed: int, fractions: dict[str, float]) -> None:
    samples = random_samples(seed)
    placed = by_group(samples, fractions, seed)
    assert placed == by_group(samples[::-1], fractions, seed)
    largest_first = dict(sorted(fractions.items(), key=lambda item: -item[1]))
    assert placed == in_memory(samples, largest_first, seed)
    counts: dict[str, Counter[int | None]] = defaultdict(Counter)
    for sample in samples:
        counts[placed[sample.group]][sample.label] += 1
    total: Counter[int | None] = sum(counts.values(), Counter())
    for split, share in fractions.items():
        for label, number in total.items():
            assert counts[split][label], f"{split} has nothing of {label}"
            assert abs(counts[split][label] - share * number) <= 31 + 0.05 * number  # within a group of it


def test_every_class_reaches_as_many_splits_as_it_has_groups() -> None:
    """Two groups a class, one of them huge: the huge trains, the other tests."""
    samples = [
        SourceSample(f"{c}-{g}-{n}", f"{c}-{g}", 1, "", label=c)
        for c in range(5)
        for g in (0, 1)
        for n in range(1 + 40 * g)
    ]
    placed = by_group(samples, {"train": 0.8, "test": 0.2}, 3)
    assert placed == {f"{c}-{g}": "train" if g else "test" for c in range(5) for g in (0, 1)}


def test_splits_that_cannot_be_made_are_refused() -> None:
    by_class = [SourceSample(str(n), CLASSES[n % 3], 1, "", label=n % 3) for n in range(30)]
    with pytest.raises(UserError, match=r"`test` would be empty: 3 groups of 3 classes"):
        splits.assign(by_class, splits.DEFAULT, 0)
    for fractions in ({"train": 0.8}, {"train": 1.2, "test": -0.2}, {"train": 0.5, "dev": 0.5}, {}):
        with pytest.raises(UserError, match="split"):
            splits.assign(by_class, fractions, 0)


def test_a_column_may_give_the_split(tmp_path: Path) -> None:
    table = make_source(tmp_path / "source")
    with_column(table, "part", lambda row: {"clip0": "val", "clip1": "test", "clip2": "dev"}.get(row["clip"], "train"))
    dataset = pack(plan_of(table, split="part"), tmp_path, max_refused=1.0)
    assert {split: dataset.samples(split) for split in dataset.splits} == {"train": 21, "val": 3, "test": 3}
    assert {json.loads(s["meta.json"])["group"] for s in samples_in(tmp_path, "val")} == {"clip0"}
    assert dataset.split_rule == "given by column `part`"
    assert dataset.refused == 3
    assert "split `dev` is not one of train, val, test" in refusals(tmp_path).values()


def test_a_given_split_that_divides_a_group_is_refused(tmp_path: Path) -> None:
    table = make_source(tmp_path / "source")
    with_column(table, "part", lambda row: "test" if row["id"] == "a/017" else "train")
    with pytest.raises(UserError, match=r"group `clip7` has samples in `train` and in `test` \(e\.g\. key a-017\)"):
        pack(plan_of(table, split="part"), tmp_path)


def test_packing_says_how_far_the_split_is_from_the_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = make_source(tmp_path / "source")
    with caplog.at_level("INFO"):
        dataset = pack(plan_of(table, group="room"), tmp_path / "out")
    assert "2 groups: 1 train, 1 test; 50 % of the samples are in test (--test 0.2)" in caplog.messages
    (warning,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert warning.startswith("test has 50 % of the samples instead of 20 %, since groups are kept whole")
    assert dataset.split_rule.endswith("; test has 50 % of the samples instead of 20 %")


def test_a_split_near_the_request_is_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = make_source(tmp_path / "source")
    fractions = {"train": 0.4, "val": 0.3, "test": 0.3}
    with caplog.at_level("INFO"):
        dataset = pack(plan_of(table), tmp_path / "out", fractions=fractions)
    line = "10 groups: 4 train, 3 val, 3 test; 30 % of the samples are in val (--val 0.3); "
    assert line + "30 % of the samples are in test (--test 0.3)" in caplog.messages
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert "instead of" not in dataset.split_rule
    caplog.clear()
    with caplog.at_level("INFO"):
        pack(plan_of(table, group=None), tmp_path / "single")
    assert not [message for message in caplog.messages if "groups:" in message]  # every sample is its own


def test_a_given_split_has_no_request_to_compare_with(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = make_source(tmp_path / "source")
    with_column(table, "part", lambda row: "test" if row["clip"] < "clip5" else "train")
    with caplog.at_level("INFO"):
        pack(plan_of(table, split="part"), tmp_path / "out")
    assert "10 groups: 5 train, 5 test; 50 % of the samples are in test" in caplog.messages
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
