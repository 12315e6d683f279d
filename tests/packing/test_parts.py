"""Several machines pack one set, each a part of it: the bytes are those of one that packs it alone."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from command_line import call
from sources import content, make_source, plan_of, refusals

from pipeline.packing import target
from pipeline.packing.pack import MissingShardsError, Packing, pack
from pipeline.packing.splits import DEFAULT

ROOT = Path(target.__file__).parents[2]
OPTIONS = ("--field", "rgb=photos/{id}.jpg", "--field", "depth=maps/{id}.png", "--label", "class", "--group", "clip")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with one photo that is refused; do not change it."""
    table = make_source(tmp_path_factory.mktemp("source"))
    (table.parent / "photos/a/004.jpg").write_bytes(b"x")
    return table


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The set, packed in one go."""
    folder = tmp_path_factory.mktemp("whole")
    pack(plan_of(source, labels=["class"]), folder)
    return content(folder)


def pack_part(source: Path, out: Path, part: tuple[int, int]) -> bool:
    """Whether this part finished the set."""
    packing = Packing(plan_of(source, labels=["class"]), str(out), fractions=DEFAULT, seed=0)
    with packing.claimed():
        packing.write(1, part)
        try:
            packing.finish()
        except MissingShardsError:
            return False
    return True


def process(source: Path, out: Path, part: str, code: str = "") -> subprocess.Popen[bytes]:
    run = f"{code}\nfrom pipeline.cli.app import main\nmain({['pack', 'manifest', str(source), str(out), *OPTIONS]!r}"
    run += f" + ['--part', {part!r}, '--workers', '1'])"
    return subprocess.Popen([sys.executable, "-c", run], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("order", [*permutations((1, 2, 3))])
def test_the_last_of_three_parts_finishes(
    source: Path, whole: dict[str, bytes], tmp_path: Path, order: Sequence[int]
) -> None:
    for number in order:
        before = {path.name for path in tmp_path.glob("*.tar")}
        assert pack_part(source, tmp_path, (number, 3)) == (number == order[-1])
        assert len({path.name for path in tmp_path.glob("*.tar")} - before) in (2, 3)  # of 8
    assert content(tmp_path) == whole
    assert list(refusals(tmp_path)) == ["004.jpg"]


@pytest.mark.slow
def test_three_parts_at_the_same_time(source: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    parts = [process(source, tmp_path, f"{number}/3") for number in (1, 2, 3)]
    said = [part.communicate()[0].decode() for part in parts]
    assert [part.returncode for part in parts] == [0, 0, 0]
    assert content(tmp_path) == whole
    assert sum("is finished. " in text for text in said) < 3  # one of them finished the set


DIES = """
import os, signal
from pipeline.packing import target
write_shard, begun = target.write_shard, []

def dying(path, samples):
    begun.append(path)
    if len(begun) == 2:
        next(iter(samples))
        os.kill(os.getpid(), signal.SIGKILL)
    return write_shard(path, samples)

target.write_shard = dying
"""


def test_a_part_that_is_killed_resumes(source: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    assert pack_part(source, tmp_path, (3, 3)) is False
    assert process(source, tmp_path, "1/3", DIES).wait() == -signal.SIGKILL
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")}
    assert len(written) == 3
    assert pack_part(source, tmp_path, (2, 3)) is False
    assert not (tmp_path / "dataset.json").exists()
    assert pack_part(source, tmp_path, (1, 3)) is True
    assert content(tmp_path) == whole
    assert all(path.stat().st_mtime_ns == then for path, then in written.items())


def test_without_part_what_is_missing_is_written(source: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    pack_part(source, tmp_path, (2, 3))
    assert call("pack", "manifest", source, tmp_path, *OPTIONS, "--workers", 1) == 0
    assert content(tmp_path) == whole


def test_more_parts_than_shards(source: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    done = [pack_part(source, tmp_path, (number, 11)) for number in range(1, 12)]
    assert done == [False] * 7 + [True] * 4
    assert content(tmp_path) == whole


def test_a_part_says_what_is_missing(source: Path, tmp_path: Path, capsys: Any) -> None:
    assert call("pack", "manifest", source, tmp_path, *OPTIONS, "--workers", 1, "--part", "1/4") == 0
    said = capsys.readouterr().out
    assert f"Part 1/4 is finished. {tmp_path}: 6 of 8 shards are missing. The part that finishes last writes" in said


@pytest.mark.parametrize("part", ["0/3", "4/3", "1", "1/0", "a/b", "-1/3"])
def test_a_part_that_is_none_is_refused(source: Path, tmp_path: Path, part: str, capsys: Any) -> None:
    assert call("pack", "manifest", source, tmp_path, *OPTIONS, f"--part={part}") == 2
    assert f"--part {part}: expected K/N" in capsys.readouterr().err


def test_a_part_overwrites_nothing(source: Path, tmp_path: Path, capsys: Any) -> None:
    assert call("pack", "manifest", source, tmp_path, *OPTIONS, "--part", "1/2", "--overwrite") == 2
    assert "--part and --overwrite" in capsys.readouterr().err
