"""Whether a teacher helps: which methods are possible, what the budget pays for, and what the answer says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import config as configs
from pipeline.bench.quick import USED, affordable_steps, methods_for, quick, sized
from pipeline.bench.quick_table import RECALL, Row, rows_of, table, verdict
from pipeline.cli.app import main
from pipeline.common.errors import UserError
from pipeline.runs.compare import paired_difference
from pipeline.runs.reader import Run, read_run


def row(method: str, values: list[float], ends: tuple[float, float] | None, reference: list[float] | None) -> Row:
    difference = paired_difference([a - b for a, b in zip(values, reference, strict=True)]) if reference else None
    return Row(method, dict(enumerate(values)), ends, difference)


@pytest.mark.parametrize(
    ("labelled", "logits", "expected"),
    [
        (True, True, ["labels", "kd", "regression", "wcord", "wcord + kd"]),
        (True, False, ["labels", "regression", "wcord"]),
        (False, True, ["kd", "regression", "wcord", "wcord + kd"]),
        (False, False, ["regression", "wcord"]),
    ],
)
def test_only_methods_that_the_data_and_the_teacher_allow(labelled: bool, logits: bool, expected: list[str]) -> None:
    methods = methods_for(labelled, logits)
    assert list(methods) == expected
    assert all(("cross_entropy" in losses) == labelled for losses in methods.values())
    assert max(map(len, methods.values())) == len(list(methods.values())[-1])  # the last one is timed


def test_the_steps_fit_into_the_budget() -> None:
    for seconds, step, overhead, rounds in [(600, 0.1, 20, 3), (60, 0.5, 1, 5), (600, 2.0, 0, 1)]:
        steps = affordable_steps(seconds, step, overhead, rounds)
        assert rounds * (overhead + steps * step) <= USED * seconds < rounds * (overhead + (steps + 1) * step)
    assert affordable_steps(10, 1.0, 20, 3) == 0


def test_a_shorter_run_has_a_shorter_warmup_and_no_validation(make_config: Callable[..., Path]) -> None:
    step = "{epochs: 4, steps: null, schedule: step, milestones: [2], warmup: 10, callbacks: [ema, early_stopping]}"
    config = configs.load(make_config(), [f"train={step}", "evaluation.every=5", "evaluation.split=train"])
    short = sized(config, 5, 20)
    assert (short.train.steps, short.train.epochs, short.train.warmup) == (5, None, 2)
    assert (short.train.callbacks, short.evaluation.every, short.evaluation.split) == (["ema"], 0, "train")
    whole = sized(config, 20, 20)
    assert (whole.train.epochs, whole.train.milestones, whole.train.warmup) == (4, [2], 10)
    for one in (short, whole):  # what is written is valid
        path = make_config("again")
        path.write_text(one.to_yaml())
        assert configs.load(path) == one


CASES: dict[str, tuple[list[Row], str]] = {
    "beyond the interval": (
        [row("labels", [0.5], (0.4, 0.6), None), row("kd", [0.8], (0.7, 0.9), [0.5])],
        "After 9 steps (the config has 90), kd leads, 30.0 points above labels only: more than the choice of test "
        "samples explains (the 95 % intervals do not overlap), but this is one seed, and the variation between seeds "
        "is unknown.",
    ),
    "within the interval": (
        [row("labels", [0.5], (0.4, 0.6), None), row("kd", [0.55], (0.45, 0.65), [0.5])],
        "kd leads, 5.0 points above labels only: not more than the choice of test samples may explain",
    ),
    "no gain": (
        [row("labels", [0.5], (0.4, 0.6), None), row("kd", [0.4], (0.3, 0.5), [0.5])],
        "labels only leads, 10.0 points above kd, the best method with the teacher: not more than",
    ),
    "harm": (
        [row("labels", [0.9], (0.85, 0.95), None), row("kd", [0.4], (0.3, 0.5), [0.9])],
        "labels only leads, 50.0 points above kd, the best method with the teacher: more than the choice",
    ),
    "seeds agree": (
        [row("untrained", [0.5, 0.5, 0.5], None, None), row("wcord", [0.7, 0.71, 0.72], None, [0.5, 0.5, 0.5])],
        "wcord leads, 21.0 points above an untrained student: more than the variation between seeds explains (95 % "
        "interval of the paired difference [+18.5, +23.5]).",
    ),
    "seeds differ": (
        [row("labels", [0.5, 0.5], (0.4, 0.6), None), row("kd", [0.5, 0.9], (0.6, 0.8), [0.5, 0.5])],
        "20.0 points above labels only: not more than the variation between seeds explains",
    ),
    "no interval": (
        [row("labels", [0.5], None, None), row("kd", [0.6], None, [0.5])],
        "there is no interval for this metric, but this is one seed",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_answer_says_no_more_than_is_known(case: str) -> None:
    rows, expected = CASES[case]
    said = verdict(rows, 9, 90)
    assert expected in said
    assert ". " not in said  # one sentence
    assert ("one seed" in said) == (len(rows[0].values) == 1)


def test_without_labels_the_reference_is_the_untrained_student() -> None:
    results = {f"random/{RECALL}": 0.3, "samples/test": 200.0}
    runs = {
        name: [Run(Path(name), {"seed": 0}, {}, results | {RECALL: r})] for name, r in [("wcord", 0.5), ("kd", 0.4)]
    }
    lines = table(rows_of(runs, RECALL, labelled=False), RECALL).splitlines()
    assert (
        lines[0]
        == "| method | R@10 student to teacher % | 95 % interval of the test split | minus an untrained student |"
    )
    assert lines[2:] == [
        "| untrained | 30.0 | [24.1, 36.7] | - |",
        "| wcord | 50.0 | [43.1, 56.9] | +20.0 |",
        "| kd | 40.0 | [33.5, 46.9] | +10.0 |",
    ]


def test_a_config_without_a_teacher_is_named(make_config: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"has no teacher, so there is nothing to compare. Add `teacher`"):
        quick(make_config())


@pytest.mark.parametrize(
    ("arguments", "ranks", "message"),
    [
        (["--minutes", "5"], "1", "--minutes and --seeds require --quick"),
        ([], "2", "WORLD_SIZE=2 is set: run `wcord bench` without a launcher"),
        (["--quick"], "2", "WORLD_SIZE=2 is set: run `wcord bench` without a launcher"),
        (["--quick"], "", "has no teacher"),
    ],
)
def test_what_the_command_refuses(
    make_config: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    ranks: str,
    message: str,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", ranks)
    with pytest.raises(SystemExit):
        main(["bench", str(make_config()), *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_same_command_resumes(
    make_config: Callable[..., Path], runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_config(teacher=f"teacher: {{run: {runs / 'teacher'}}}", losses="  wcord: {dim: 8}")
    text = quick(path, ["train.log_every=4"], minutes=30)
    folder = tmp_path / "run_quick"
    assert [line.split(" | ")[0] for line in text.splitlines()[2:7]] == [
        f"| {name}" for name in ("labels", "kd", "regression", "wcord", "wcord + kd")
    ]
    assert text.rstrip().endswith("but this is one seed, and the variation between seeds is unknown.")
    assert (folder / "quick.md").read_text() == text
    assert not (folder / "timing").exists()
    done = read_run(folder / "run" / "wcord + kd_s0")
    assert done.config["losses"]["kd"]["weight"] == 3
    assert done.config["train"]["steps"] == 12  # those of the config: the budget is large

    def fail(*_: Any) -> None:
        raise AssertionError("timed again")

    monkeypatch.setattr("pipeline.bench.quick._time_steps", fail)
    (folder / "run" / "kd_s0" / "results.json").unlink()
    assert quick(path, ["train.log_every=4"], minutes=30) == text
    with pytest.raises(AssertionError, match="timed again"):
        quick(path, ["train.log_every=4"], minutes=20)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_pairs_without_labels_and_a_budget_that_is_too_small(
    make_config: Callable[..., Path], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_config(teacher=f"teacher: {{run: {runs / 'teacher'}}}", losses="  wcord: {dim: 8}")
    monkeypatch.setattr("pipeline.data.source.Source.labelled", lambda _: False)
    monkeypatch.setattr("pipeline.bench.quick.class_names", lambda *_: None)
    with pytest.raises(UserError, match=r"2 runs of 12 steps take about \d+ minutes .* Set --minutes \d+"):
        quick(path, minutes=0.001)
    text = quick(path, minutes=30, seeds=2)
    assert [line.split(" | ")[0] for line in text.splitlines()[2:5]] == ["| untrained", "| regression", "| wcord"]
    assert "95 % interval of the paired difference" in text
    assert "one seed" not in text
