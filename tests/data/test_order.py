"""The order of a mixture is a pure function, whose parts fit together at any place."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from pipeline.data.dataset import Shard
from pipeline.data.order import Pass, Passes, Shares, once, passes_from, with_replacement

SHARDS = tuple(Shard(file=f"{n}.tar", samples=n, bytes=0, sha256="") for n in (5, 1, 12, 3, 7))
TOTAL = sum(shard.samples for shard in SHARDS)


def taken(own: Pass) -> list[tuple[str, int]]:
    """Shard and place of each sample of a pass, in the order of the shards."""
    ends = [(shard.file, place) for shard in own.shards for place in range(shard.samples)]
    return ends[own.start : own.stop]


@pytest.mark.parametrize("readers", [1, 2, 3, 7, TOTAL])
def test_a_pass_of_all_readers_has_every_sample_once(readers: int) -> None:
    passes = [list(islice(once(SHARDS, "s")(reader, readers), 3)) for reader in range(readers)]
    for number in range(3):
        found = Counter(sample for own in passes for sample in taken(own[number]))
        assert len(found) == TOTAL
        assert set(found.values()) == {1}
    assert passes[0][0].shards != passes[0][1].shards, "each pass has an order of its own"


def test_more_readers_than_samples_take_all_of_them() -> None:
    assert next(once(SHARDS, "s")(TOTAL, TOTAL + 5)).samples == TOTAL


def test_with_replacement_all_shards_are_as_likely_and_read_whole() -> None:
    drawn = Counter(shard.file for own in islice(with_replacement(SHARDS, "s", 50)(0, 1), 2000) for shard in own.shards)
    share = np.array(list(drawn.values())) / drawn.total()
    assert abs(share - 1 / len(SHARDS)).max() < 0.015
    own = next(with_replacement(SHARDS, "s", 50)(0, 1))
    assert (own.start, own.stop) == (0, sum(shard.samples for shard in own.shards))
    assert own.samples >= 50


def test_readers_with_replacement_draw_differently() -> None:
    draw = with_replacement(SHARDS, "s", 50)
    assert next(draw(0, 2)).shards != next(draw(1, 2)).shards


@pytest.mark.parametrize("passes", [once(SHARDS, "s"), with_replacement(SHARDS, "s", 20)], ids=["once", "replaced"])
@pytest.mark.parametrize("done", [0, 1, 9, 28, 29, 100])
def test_what_is_left_of_the_passes_after_some_samples_is_their_rest(passes: Passes, done: int) -> None:
    whole = [sample for own in islice(passes(0, 2), 20) for sample in taken(own)]
    left = [sample for _, own, begin in islice(passes_from(passes(0, 2), done), 3) for sample in taken(own)[begin:]]
    assert left == whole[done : done + len(left)]


@pytest.mark.parametrize(("batch", "ranks"), [(1, 1), (16, 2), (7, 3)])
def test_the_shares_hold_within_one_per_cent_over_ten_thousand_steps(batch: int, ranks: int) -> None:
    shares = Shares((0.3, 0.7), 0, batch, ranks)
    found = sum(shares.taken(range(10_000), rank) for rank in range(ranks))
    assert abs(found[0] / found.sum() - 0.3) < 0.01
    early = shares.taken(range(100), 0)
    assert abs(early[0] - 30 * batch) <= 3 + 0.02 * 100 * batch, "in every stretch of a run"


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_counting_what_was_taken_agrees_with_taking_it(workers: int) -> None:
    shares = Shares((1, 2, 5), 7, 6, 2)
    for worker in range(workers):
        steps = range(worker, 500, workers)
        one_by_one = sum(np.bincount(shares.of_batch(step, 1), minlength=3) for step in steps)
        assert (shares.taken(steps, 1) == one_by_one).all()


def test_no_share_is_lost_however_the_run_is_cut() -> None:
    shares = Shares((0.25, 0.75), 3, 5, 1)
    assert (shares.taken(range(1000), 0) == shares.taken(range(400), 0) + shares.taken(range(400, 1000), 0)).all()
