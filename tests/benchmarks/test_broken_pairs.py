"""The benchmark of broken pairs trains both forms, and scores the detection by the pairs that it exchanged."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.broken_pairs import _detected, broken, print_tables, run
from benchmarks.suite.jobs import teach
from benchmarks.suite.settings import Setting
from pipeline.runs.pairs_file import Pair, read_pairs, write_pairs

METHODS = {"wcord": {"wcord": {"dim": 8, "queue": 16}}}


@pytest.mark.slow
def test_both_forms_are_trained_and_tabled(
    setting: Setting, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "half"
    half = setting.model_copy(update={"broken": broken(0.5, "rgb")})
    teach(half, tmp_path, out)
    half.pack(tmp_path, out)
    run(half, out, METHODS, 0)
    assert len(read_pairs(out / "wcord, noisy_seed0")) == 24
    assert not read_pairs(out / "wcord_seed0")
    capsys.readouterr()
    print_tables("squares", {0.5: (half, out)}, tmp_path, 1)
    table = capsys.readouterr().out
    assert "| method | 50% mismatched |" in table
    assert all(f"| {method} |" in table for method in ("labels", "wcord", "wcord, noisy"))


def test_detection_is_scored_by_the_exchanged_pairs(setting: Setting, tmp_path: Path) -> None:
    half = setting.model_copy(update={"broken": broken(0.5, "rgb")})
    order = [row["id"] for row in half._splits(tmp_path, tmp_path)["train"]]
    (tmp_path / "perfect_seed0").mkdir()
    write_pairs(tmp_path / "perfect_seed0", [Pair(key, "a.tar", n, float(n >= 12)) for n, key in enumerate(order)])
    assert _detected(half, tmp_path, "perfect", tmp_path, 1) == "1.00 (100% and 0%)"
    (tmp_path / "wrong_seed0").mkdir()
    write_pairs(tmp_path / "wrong_seed0", [Pair(key, "a.tar", n, float(n < 12)) for n, key in enumerate(order)])
    assert _detected(half, tmp_path, "wrong", tmp_path, 1) == "0.00 (0% and 100%)"
    assert _detected(half, tmp_path, "missing", tmp_path, 1) == "-"
