"""Two processes that write one folder: a round of the benchmark for two commands, and proof that it sees a mix."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.two_at_once import Contest, contests, differences, rounds


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Contest]:
    return contests(tmp_path_factory.mktemp("two"))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["pack", "cache"])
def test_results_are_never_mixed(held: dict[str, Contest], command: str) -> None:
    assert rounds(held[command], 1, random.Random(command)) == []


def test_a_mixed_result_differs_from_both(tmp_path: Path) -> None:
    contest = Contest(([], []), tmp_path / "run")
    contest.output.mkdir()
    for name in ("a", "b"):
        (contest.output / name).write_text("one")
    one = contest.content()
    (contest.output / "a").write_text("two")
    assert differences(contest.content(), [one, contest.content()]) == "a / none"
    (tmp_path / ".run.lock").touch()
    assert contest.leftovers() == [tmp_path / ".run.lock"]
    assert replace(contest, written="a").content().keys() == {"a"}
