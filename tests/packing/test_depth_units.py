"""Units told by the maps' median readings: mixtures are faults, what is merely odd is a note, and chance is neither."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.dataset import Layout, Shard
from pipeline.packing.depth_units import Depths
from pipeline.packing.scan import Scan, ScanJob, add_depth

SHARDS = 5


def depths(metres: np.ndarray, coarse: int = 0) -> Depths:
    """Of maps with such medians, dealt out in their order to five shards, with keys k0, k1 …"""
    found, number = Depths(), 0
    for place, part in enumerate(np.array_split(metres, SHARDS)):
        shard = Shard(file=f"train-{place:06d}.tar", samples=len(part), bytes=0, sha256="")
        scan = Scan(ScanJob(Layout(Path()), "train", shard, (), {}, (), False), coarse=coarse if place == 0 else 0)
        own = []
        for median in part:
            own.append((round(1000 * median), f"k{number}"))
            scan.depths[own[-1][0]] += 1
            scan.near[round(0.6 * own[-1][0])] += 1
            number += 1
        scan.ends = (min(own), max(own))
        found.add(scan)
    return found


def rooms(count: int, decades: float, seed: int = 0) -> np.ndarray:
    return 1.5 * 10 ** np.random.default_rng(seed).normal(0, decades, count)


@pytest.mark.parametrize("factor", [0.001, 0.1, 10.0, 1000.0])
@pytest.mark.parametrize(("count", "decades", "share"), [(30, 0.1, 0.4), (1000, 0.12, 0.4), (1000, 0.1, 0.02)])
def test_a_part_of_the_maps_in_another_unit_is_a_fault(factor: float, count: int, decades: float, share: float) -> None:
    metres = rooms(count, decades)
    spoilt = round(share * count)
    metres[:spoilt] *= factor
    head, *named = depths(metres).faults()
    near, far = (spoilt, count - spoilt) if factor < 1 else (count - spoilt, spoilt)
    wanted = (
        f"depth: the values of {far} maps are about {round(max(factor, 1 / factor))} times as large as those of the "
        f"other {near}"
    )
    assert head.startswith(wanted)
    reached = -(-spoilt // (count // SHARDS))  # the first shards hold them
    assert [line[:16] for line in named] == [f"train-{place:06d}.tar" for place in range(reached)]
    assert all(int(line.split(": k")[1].split(":")[0]) < spoilt for line in named)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("decades", [0.02, 0.1, 0.2, 0.3])
@pytest.mark.parametrize("count", [5, 30, 1000])
def test_maps_that_differ_by_nature_are_none(count: int, decades: float, seed: int) -> None:
    assert list(depths(rooms(count, decades, seed)).faults()) == []


def test_two_kinds_of_place_and_single_maps_are_none() -> None:
    near = rooms(50, 0.1)
    for others in (3 * rooms(50, 0.1, 1), 10 * rooms(2, 0.1)):
        assert list(depths(np.concatenate([near, others])).faults()) == []


def test_what_is_merely_odd_is_a_note() -> None:
    plain = rooms(100, 0.1)
    assert list(depths(plain).notes()) == []
    assert next(depths(0.1 * plain).notes()).startswith("the median depth is 0.1")
    (note,) = depths(rooms(100, 0.5)).notes()
    assert note.startswith("the median depth of nine of ten maps is 0.")
    assert list(depths(plain, coarse=50).notes()) == []
    (note,) = depths(plain, coarse=51).notes()
    assert note.startswith("in 51 of 100 depth maps, all values are multiples of 10 mm")


def test_without_depth_maps_nothing_is_said() -> None:
    assert [*Depths().notes(), *Depths().faults()] == []
    assert depths(np.array([1.0, 2, 2, 2, 3])).fact() == "median 2.00 m, nine of ten maps 1.00 to 2.00 m"


def hands(count: int, noisy: int) -> Depths:
    """Maps of hands at about 0.7 m, of which the last `noisy` have noise of 22 to 65 m in the background."""
    rng, found = np.random.default_rng(0), Depths()
    shard = Shard(file="train-000000.tar", samples=count, bytes=0, sha256="")
    scan = Scan(ScanJob(Layout(Path()), "train", shard, (), {}, (), False))
    for number in range(count):
        depth = rng.normal(rng.uniform(600, 800), 20, (24, 24)).round()
        if number >= count - noisy:
            depth[:, :13] = rng.uniform(22000, 65000, (24, 13)) if number % 2 else 7 * depth[:, :13] + 2000
        add_depth(f"k{number}", depth.astype(np.uint16), scan)
    found.add(scan)
    return found


@pytest.mark.parametrize("noisy", [3, 40, 83])
def test_noise_in_the_background_is_no_other_unit(noisy: int) -> None:
    assert list(hands(200, noisy).faults()) == []


def test_a_thing_that_is_close_in_some_maps_is_no_other_unit() -> None:
    found = depths(rooms(200, 0.02))
    found.near.subtract({key: min(count, 1) for key, count in found.near.items()})
    found.near += Counter({90: 60})
    assert list(found.faults()) == []
