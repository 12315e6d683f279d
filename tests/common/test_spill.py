"""What lies on disk is what was put there, and takes no memory however much it is."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sources import jpeg

from pipeline.common.spill import blob, unblob
from pipeline.packing.check import check
from pipeline.packing.pack import pack
from pipeline.packing.recipes import folders, manifest
from pipeline.packing.recipes.plan import SourceSample, spilled

SAMPLES = [
    SourceSample(
        "a", "group", 3, "stamp", {"rgb.jpg": "/x/ü\udcff.jpg"}, {"text.txt": "\ud800 two\nlines"}, ["p", 7], 0
    ),
    SourceSample("b", "group", 1 << 40, "", arguments=[], labels={"room": 2}, split="val", source="b's"),
    SourceSample("c", "", 0, "", arguments=[]),
]


def test_samples_come_back_as_they_were() -> None:
    found = spilled(SAMPLES)
    assert len(found) == 3
    assert list(found) == list(found) == SAMPLES
    assert [found[0], found[-1], *found[1:]] == [SAMPLES[0], SAMPLES[2], *SAMPLES[1:]]
    for place in (3, -4):
        with pytest.raises(IndexError):
            found[place]
    found.append(SAMPLES[0])
    assert found[3] == SAMPLES[0]


def test_names_sort_in_bytes_as_they_do_in_text() -> None:
    names = ["", "a", "a/b", "a b", "ab", "Z", "é", "\x00", "\udcff", "\ud800x", "\uffee", "\U0001f600", "10", "9"]
    assert [unblob(data) for data in sorted(map(blob, names))] == sorted(names)


def write_pairs(folder: Path, count: int) -> Path:
    """A table of so many samples, each with its own group; photos of the same content."""
    folder.mkdir()
    (folder / "0.jpg").write_bytes(jpeg(0))
    for n in range(1, count):
        os.link(folder / "0.jpg", folder / f"{n}.jpg")
    rows = (f"{n},{n}.jpg,{'abc'[n % 3]}\n" for n in range(count))
    (folder / "index.csv").write_text("id,file,class\n" + "".join(rows))
    return folder


def most_objects(work: Callable[[], object]) -> int:
    """How many blocks of memory Python's objects took at most while something ran, looked at every few milliseconds."""
    seen, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.002):
            seen.append(sys.getallocatedblocks())

    gc.collect()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        ended.set()
        watcher.join()
    return max(seen)


def grown(run: Callable[[int], int]) -> float:
    """The objects that each further sample adds; lists of samples would add ten and more."""
    run(500)  # imports, and what is made once
    return (run(4000) - run(1000)) / 3000


@pytest.mark.slow
def test_packing_and_checking_hold_no_objects_for_each_sample(tmp_path: Path) -> None:
    def pack_all(folder: Path) -> None:
        plan = manifest.plan(folder / "index.csv", {"rgb": "file"}, ["class"])
        pack(plan, folder / "packed", shard_bytes=200 * plan.samples[0].size)

    def packing(count: int) -> int:
        folder = write_pairs(tmp_path / str(count), count)
        return most_objects(lambda: pack_all(folder))

    assert grown(packing) < 2
    assert grown(lambda count: most_objects(lambda: check(tmp_path / str(count) / "packed", processes=1))) < 2


@pytest.mark.slow
def test_listing_folders_holds_no_objects_for_each_file(tmp_path: Path) -> None:
    def listing(count: int) -> int:
        for n in range(count):
            path = tmp_path / str(count) / "photos" / str(n // 200) / f"{n}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return most_objects(lambda: folders.plan(tmp_path / str(count), {"rgb": "photos"}, label_from="parent"))

    assert grown(listing) < 2
