"""Random search: what is drawn, what is chosen, and that the best setting is the one that is run."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from shapes_dataset import write_dataset

from pipeline.bench.matrix import run_bench
from pipeline.bench.settings import Choice, Space, Tune
from pipeline.bench.tables import Entry, Tuned, as_csv, markdown
from pipeline.bench.tune import choose, draw, is_outer, with_values
from pipeline.common.errors import UserError
from pipeline.runs.compare import SeedStatistics
from pipeline.runs.reader import Run, read_run

OVER: dict[str, Space] = {"kd.weight": [0.1, 100.0], "kd.temperature": Choice(choice=[1.0, 4.0])}
BENCH = """
run: {run}
seeds: 2
baseline: labels
teachers: {{photo: {{config: base.yaml, set: {{student.modality: rgb}}}}}}
pairs: {{photo to range: {{config: base.yaml, teacher: photo}}}}
methods:
  labels: {{cross_entropy: {{}}}}
  kd: {{cross_entropy: {{}}, kd: {{}}}}
tune: {{trials: 2, split: val, over: {{kd: {{kd.weight: [0.01, 100], kd.temperature: {{choice: [1.0, 4.0]}}}}}}}}
"""


@pytest.fixture
def bench(make_config: Any, tmp_path: Path) -> Path:
    make_config("base", shards=write_dataset(tmp_path / "shapes", {"train": [48], "val": [24], "test": [12]}))
    path = tmp_path / "bench.yaml"
    path.write_text(BENCH.format(run=tmp_path / "matrix"))
    return path


def test_values_are_log_uniform_and_choices_equally_likely() -> None:
    drawn = [draw("kd", OVER, trial) for trial in range(2000)]
    weights = sorted(values["kd.weight"] for values in drawn)
    assert weights[0] >= 0.1
    assert weights[-1] <= 100
    for below, share in ((1.0, 1 / 3), (10.0, 2 / 3)):
        assert sum(weight < below for weight in weights) / 2000 == pytest.approx(share, abs=0.04)
    assert sum(values["kd.temperature"] == 4 for values in drawn) / 2000 == pytest.approx(0.5, abs=0.04)


def test_a_trial_depends_on_nothing_but_its_method_setting_and_number() -> None:
    alone = draw("kd", {"kd.weight": OVER["kd.weight"]}, 3)
    assert draw("kd", OVER, 3)["kd.weight"] == alone["kd.weight"]
    assert draw("kd", OVER, 4) != draw("kd", OVER, 3) != draw("dist", OVER, 3)


def test_values_replace_those_of_the_losses() -> None:
    losses: dict[str, Any] = {"cross_entropy": None, "kd": {"weight": 3.0, "temperature": 2.0}, "my.module:Loss": {}}
    found = with_values(losses, {"kd.weight": 7.0, "cross_entropy.weight": 2.0, "my.module:Loss.weight": 5.0}, "x")
    assert found == {
        "cross_entropy": {"weight": 2.0},
        "kd": {"weight": 7.0, "temperature": 2.0},
        "my.module:Loss": {"weight": 5.0},
    }
    assert losses["kd"]["weight"] == 3


def test_the_best_trial_is_chosen_over_its_seeds() -> None:
    tune = Tune(trials=3, seeds=2, over={"kd": OVER})

    def trial(*scores: float | None) -> list[Run]:
        return [
            Run(Path("x"), results={} if s is None else {"student/top1": s, "retrieval/median_rank": s}) for s in scores
        ]

    trials = [trial(0.9, 0.1), trial(0.6, 0.7), trial(1.0, None)]
    best = choose(tune, "kd", trials, "student/top1")
    assert best.values == draw("kd", OVER, 1)
    assert best.score == pytest.approx(0.65)
    assert choose(tune, "kd", trials, "retrieval/median_rank").values == draw("kd", OVER, 0)
    with pytest.raises(UserError, match=r"tune.over.kd: no trial has the result student/f1 on the split `val`"):
        choose(tune, "kd", trials, "student/f1")


@pytest.mark.parametrize(
    ("value", "outer"), [(0.1, True), (0.19, True), (0.21, False), (10.0, False), (49.0, False), (51.0, True)]
)
def test_the_outer_tenth_of_a_range_is_told_in_log_space(value: float, outer: bool) -> None:
    assert is_outer(OVER["kd.weight"], value) == outer  # 0.1 * 1000 ** 0.1 = 0.1995; 100 / 1000 ** 0.1 = 50.1
    assert not is_outer(Choice(choice=[0.1, 100]), value)


def test_the_tables_say_what_was_chosen() -> None:
    tuned = Tuned({"kd.weight": 93.2, "kd.temperature": 4}, 0.712, "val", 24, ("kd.weight",))
    found = [
        Entry("a", name, "student/top1", "labels", SeedStatistics(0.6, None, 1), None, None, None, None, own)
        for name, own in (("teacher", None), ("labels", None), ("kd", tuned))
    ]
    text = markdown(found)
    assert "| tuned | pair | trials | chosen | top-1 % on the split | note |" in text
    assert (
        "| kd | a | 24 | kd.weight = 93.2, kd.temperature = 4 | val: 71.20 | kd.weight near the end of its range: "
        "extend the range |"
    ) in text
    assert "| tuned" not in markdown(found[:2])
    rows = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert [row["tuned"] for row in rows] == ["", "", "kd.weight = 93.2, kd.temperature = 4"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("over: {kd:", "over: {kdd:", "tune.over: there is no method 'kdd'; choose one of labels, kd"),
        ("kd.weight: [", "dist.weight: [", "tune.over.kd.dist.weight: must be LOSS.SETTING"),
        ("kd.weight: [", "kd.wieght: [", "wieght: unknown key"),
        ("[0.01, 100]", "[0, 100]", "0 < low < high"),
        ("[0.01, 100]", "[100, 1]", "0 < low < high"),
        ("[0.01, 100]", "[1]", "0 < low < high"),
        ("[1.0, 4.0]", "[-1.0]", "temperature"),
        ("split: val", "split: dev", "tune.split: .*split `dev` has no samples"),
        ("trials: 2", "trails: 2", "trails: unknown key; did you mean trials"),
        ("trials: 2", "trials: 0", "tune.trials"),
        ("over: {kd:", "over: {labels: {}, kd:", "labels: has no settings to tune"),
    ],
)
def test_faults_of_the_search_are_named_before_anything_is_trained(
    bench: Path, old: str, new: str, message: str
) -> None:
    text = bench.read_text()
    assert old in text
    bench.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        run_bench(bench)
    assert not (bench.parent / "matrix").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_best_setting_is_run_with_all_seeds(bench: Path, tmp_path: Path) -> None:
    found = run_bench(bench, jobs=2)
    tuned = next(entry for entry in found if entry.method == "kd")
    assert tuned.tuned is not None
    assert tuned.value is not None
    assert tuned.value.n == 2
    folder = tmp_path / "matrix" / "photo to range"
    trials = [read_run(folder / "tuning" / f"kd_t{trial}_s0") for trial in range(2)]
    assert not (folder / "tuning" / "kd_t0_s1").exists()
    assert {trial.split for trial in trials} == {"val"}
    best = max(trials, key=lambda run: run.results["student/top1"])
    assert tuned.tuned.score == best.results["student/top1"]
    for seed in range(2):
        final = read_run(folder / f"kd_s{seed}")
        assert final.split == "test"
        assert final.config["losses"] == best.config["losses"]
        assert read_run(folder / f"labels_s{seed}").config["losses"]["cross_entropy"]["weight"] == 1
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("results.json")}
    (folder / "tuning" / "kd_t1_s0" / "results.json").unlink()
    again = run_bench(bench, jobs=2)
    assert [entry.tuned for entry in again] == [entry.tuned for entry in found]
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("results.json")}
    assert [path for path in before if before[path] != kept[path]] == [folder / "tuning" / "kd_t1_s0" / "results.json"]
