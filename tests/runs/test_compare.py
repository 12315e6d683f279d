from __future__ import annotations

import csv
import io
import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from pipeline.cli.app import main
from pipeline.common.errors import UserError
from pipeline.runs.compare import compare, paired_difference
from pipeline.runs.reader import read_run

KD = [0.70, 0.72, 0.71, 0.74]
WCORD = [0.73, 0.74, 0.75, 0.76]


def make_run(folder: Path, results: dict[str, float], seed: int, weight: float = 1.0, **config: Any) -> Path:
    folder.mkdir(parents=True)
    settings = {
        "run": str(folder),
        "seed": seed,
        "losses": {"kd": {"weight": weight}},
        "train": {"steps": 10},
        **config,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def make_runs(root: Path, name: str, top1: Sequence[float], weight: float = 1.0) -> list[Path]:
    return [
        make_run(root / f"{name}_s{seed}", {"student/top1": value, "teacher/top1": 0.84}, seed, weight)
        for seed, value in enumerate(top1)
    ]


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return make_runs(tmp_path, "kd", KD) + make_runs(tmp_path, "wcord", WCORD, weight=2.0)


def test_runs_that_differ_only_by_seed_are_one_method(runs: list[Path]) -> None:
    found = compare(runs)
    assert [group.name for group in found.groups] == ["kd", "wcord"]
    cell = found.groups[0].cell("student/top1")
    assert cell is not None
    assert (cell.mean, cell.std, cell.n) == (pytest.approx(0.7175), pytest.approx(statistics.stdev(KD)), 4)
    assert found.rows()[1] == ["kd", "71.8 ± 1.7 (4)"]


def test_a_changed_setting_is_another_method(tmp_path: Path) -> None:
    results = {"student/top1": 0.5}
    one = make_run(tmp_path / "a" / "kd_s0", results, 0, evaluation={"baselines": ["labels_s0"], "neighbours": 10})
    same = make_run(tmp_path / "a" / "kd_s1", results, 1, evaluation={"baselines": ["labels_s1"], "neighbours": 10})
    other = make_run(tmp_path / "b" / "kd_s0", results, 0, evaluation={"baselines": [], "neighbours": 20})
    found = compare([one, same, other])
    assert [(group.name, len(group.runs)) for group in found.groups] == [("kd", 2), ("kd #2", 1)]


def test_seeds_whose_teachers_are_cached_apart_are_one_method(tmp_path: Path) -> None:
    def cell(seed: int, cache: str | None) -> Path:
        teacher = {"run": "teacher", "cache": cache, "views": 3}
        return make_run(tmp_path / str(cache) / f"kd_s{seed}", {"student/top1": 0.5}, seed, teacher=teacher)

    found = compare([cell(0, "bench_a"), cell(1, "bench_b"), cell(2, None)])
    assert [(group.name, len(group.runs)) for group in found.groups] == [("kd", 2), ("kd #2", 1)]


@pytest.mark.parametrize("name", ["kd_s3", "kd-seed3", "kd_seed3", "kd_3"])
def test_seed_and_name_from_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "results.json").write_text("{}")
    run = read_run(tmp_path / name)
    assert (run.stem, run.seed) == ("kd", 3)


def test_paired_difference_by_hand(runs: list[Path]) -> None:
    found = compare(runs)
    difference = found.difference(found.groups[1], "student/top1")
    # Differences .03 .02 .04 .02: mean .0275, std .0095743; t(.975, 3) = 3.18245, so the half width is .015235.
    assert difference is not None
    assert difference.mean == pytest.approx(0.0275)
    assert difference.std == pytest.approx(0.00957427)
    assert (difference.low, difference.high) == (pytest.approx(0.0122654, abs=1e-6), pytest.approx(0.0427346, abs=1e-6))
    assert difference.verdict == "better"
    assert found.difference(found.groups[0], "student/top1") is None
    assert found.difference_rows() == [["minus kd", "top-1 %"], ["wcord", "+2.8 ± 1.0 [+1.2, +4.3] (4): better"]]


def test_pairing_finds_what_the_spread_between_seeds_hides(tmp_path: Path) -> None:
    found = compare(make_runs(tmp_path, "a", [0.5, 0.6, 0.7]) + make_runs(tmp_path, "b", [0.51, 0.612, 0.711], 2.0))
    difference = found.difference(found.groups[1], "student/top1")
    assert difference is not None
    assert difference.verdict == "better"


def test_verdicts() -> None:
    assert paired_difference([0.03, -0.01, 0.02]).verdict == "within noise"
    assert paired_difference([0.0, 0.0]).verdict == "within noise"
    assert paired_difference([-0.03, -0.031, -0.029]).verdict == "worse"
    assert paired_difference([-3.0, -3.1, -2.9], lower_is_better=True).verdict == "better"
    # Two seeds and 2 std / sqrt(n) would call this better; the t interval, with t(.975, 1) = 12.7, does not.
    assert paired_difference([0.02, 0.04]).verdict == "within noise"
    assert paired_difference([0.3]).verdict == "no verdict"


@pytest.mark.parametrize(
    ("key", "sections"),
    [
        ("data.shards", {"data": {"shards": "other", "label": "label"}}),
        ("data.label", {"data": {"shards": "data", "label": "parity"}}),
        ("evaluation.split", {"evaluation": {"split": "val", "samples": None}}),
        ("evaluation.samples", {"evaluation": {"split": "test", "samples": 50}}),
        ("samples/test", {}),
    ],
)
def test_there_is_no_verdict_on_what_was_measured_apart(tmp_path: Path, key: str, sections: dict[str, Any]) -> None:
    same = {"data": {"shards": "data", "label": "label"}, "evaluation": {"split": "test", "samples": None}}

    def method(name: str, weight: float, top1: float, count: int = 30, **other: Any) -> list[Path]:
        results = {"student/top1": top1, "samples/test": count}
        return [make_run(tmp_path / f"{name}_s{seed}", results, seed, weight, **same | other) for seed in range(3)]

    apart = method("apart", 2.0, 0.8, 40 if key == "samples/test" else 30, **sections)
    found = compare([*method("base", 1.0, 0.5), *method("like", 3.0, 0.8), *apart])
    verdicts = [found.difference(group, "student/top1") for group in found.groups[1:]]
    assert [one.verdict for one in verdicts if one] == ["better", "no verdict"]
    assert [note for note in found.notes if "no verdict" in note] == [note for note in found.notes if key in note]
    assert f"apart and base were measured on different data ({key}: " in found.markdown()


def test_only_common_seeds_are_paired(runs: list[Path]) -> None:
    found = compare([runs[1], runs[2], *runs[4:7]], baseline="wcord")
    assert found.baseline.name == "wcord"
    difference = found.difference(found.groups[0], "student/top1")
    assert difference is not None
    assert (difference.n, difference.mean) == (2, pytest.approx(-0.03))
    apart = compare([runs[0], runs[5]])
    assert apart.difference(apart.groups[1], "student/top1") is None
    assert len(apart.difference_rows()) == 1


def test_files_and_terminal(runs: list[Path], tmp_path: Path) -> None:
    (runs[0] / "metrics.jsonl").write_text('{"step": 20, "loss": 2.0}\n{"step": 40, "lo')
    found = compare(runs, tmp_path / "out")
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| kd | 71.8 ± 1.7 (4) |" in table
    assert "| wcord | +2.8 ± 1.0 [+1.2, +4.3] (4): better |" in table
    assert "95 % paired t interval" in " ".join(table.split())
    assert "last line (2) is truncated" in table
    lines = list(csv.DictReader(io.StringIO((tmp_path / "out" / "table.csv").read_text())))
    assert [line["method"] for line in lines] == ["kd", "wcord"]
    assert lines[0]["seeds"] == "0 1 2 3"
    assert float(lines[1]["student/top1 difference"]) == pytest.approx(0.0275)
    assert lines[1]["student/top1 common seeds"] == "4"
    assert lines[1]["student/top1 verdict"] == "better"
    assert (tmp_path / "out" / "plot.png").read_bytes().startswith(b"\x89PNG")
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(found.terminal())
    shown = console.export_text()
    assert "71.8 ± 1.7 (4)" in shown
    assert "better" in shown


def test_the_command_writes_the_plot_and_says_where(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="0"):
        main(["compare", *map(str, runs)])
    assert "compare: wrote table.md, table.csv and plot.png." in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "compare").iterdir()) == ["plot.png", "table.csv", "table.md"]


def test_names_are_not_markup(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, "[red]a|b$x", [0.5]) + make_runs(tmp_path, "c", [0.5], weight=2.0)
    found = compare(runs, tmp_path / "out")
    assert r"| [red]a\|b$x |" in (tmp_path / "out" / "table.md").read_text()
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(found.terminal())
    shown = console.export_text()
    assert re.search(r"^ *\[red\]a\|b\$x +50\.0", shown, re.M)
    assert "minus [red]a|b$x" in shown


def test_faults_say_what_to_do(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least one run"):
        compare([])
    with pytest.raises(UserError, match="there is no method 'crd'; choose one of kd, wcord"):
        compare(runs, baseline="crd")
    with pytest.raises(UserError, match="same method and seed"):
        compare([runs[0], make_run(tmp_path / "again", {"student/top1": 0.7}, 0)])
    with pytest.raises(UserError, match="no such run folder"):
        compare([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "photo.jpg").touch()
    with pytest.raises(UserError, match="not a run folder"):
        compare([tmp_path / "empty"])
    (tmp_path / "empty" / "config.yaml").write_text("seed: 0")
    with pytest.raises(UserError, match="wcord evaluate"):
        compare([tmp_path / "empty"])


def test_a_log_with_a_cut_short_line_keeps_the_rest(tmp_path: Path) -> None:
    lines = ['{"step": 20, "loss": 2.0}', "nonsense", '{"step": 40, "loss": 1.0}', '{"step": 40, "held_out/top1": 0.5}']
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 60, "lo']))
    run = read_run(tmp_path)
    assert run.series("loss") == ([20, 40], [2.0, 1.0])
    assert run.series("held_out/top1") == ([40], [0.5])
    notes = " ".join(run.notes)
    assert "last line (5) is truncated" in notes
    assert "skipped 1 line(s) that are not JSON objects with a step; the first is 2" in notes


def test_results_that_are_no_numbers_are_reported(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"student/top1": 0.5, "student/probe": NaN, "student/knn": null}')
    run = read_run(tmp_path)
    assert run.results == {"student/top1": 0.5}
    assert any("student/knn, student/probe" in note for note in run.notes)
