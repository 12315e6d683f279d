"""`wcord.distill` with plain modules and a plain loader."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import wcord
from pipeline.config import load
from pipeline.report.page import report
from pipeline.runs.checkpoint import list_checkpoints
from pipeline.runs.reader import read_run

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
TWO = wcord.losses.Dims(2)
Y = (X[:, 0] > 0).long()
SETTINGS: dict[str, Any] = {"steps": 12, "checkpoint_every": 5, "log_every": 4, "warmup": 2, "trackers": []}


def mlp(width: int, out: int = 2) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, out))


def batches() -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True)


def test_plain_modules_and_a_plain_loader(tmp_path: Path) -> None:
    teacher = mlp(32)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    student = mlp(4)
    accuracy = {"accuracy": lambda label, prediction: (label == prediction).mean()}
    run = wcord.distill(
        teacher,
        student,
        batches(),
        [
            "cross_entropy",
            {"name": "kd", "weight": 0.5},
            wcord.losses.Cosine(wcord.losses.Dims(2), wcord.losses.Dims(2)),
        ],
        run=tmp_path / "run",
        validation=batches(),
        metrics=accuracy,
        **SETTINGS | {"steps": 120, "learning_rate": 0.03},
    )
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert json.loads((run / "results.json").read_text())["student/accuracy"] > 0.8
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["loss"] == pytest.approx(row["loss/cross_entropy"] + row["loss/kd"] / 2 + row["loss/Cosine"], rel=1e-4)
    mlp(4).load_state_dict(load_file(run / "student" / "model.safetensors"))
    with pytest.raises(wcord.UserError, match="which only your program can build"):
        wcord.load(run)


def test_more_steps_move_the_end_of_the_schedule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for steps in (4, 6):
        run = wcord.distill(
            None,
            mlp(4),
            batches(),
            ["cross_entropy"],
            run=tmp_path / "run",
            resume=steps == 6,
            validation=batches(),
            metrics={"accuracy": lambda label, prediction: (label == prediction).mean()},
            **SETTINGS | {"steps": steps},
        )
    said = capsys.readouterr().out
    assert f"{run}: the learning rate schedule now ends at step 6, not 4." in said
    assert "is removed" not in said  # it is written again


def test_a_resumed_run_has_the_same_bits_and_calls_back(tmp_path: Path) -> None:
    class Count(wcord.Callback):
        def __init__(self) -> None:
            self.steps: list[int] = []

        def on_step(self, context: Any) -> None:
            self.steps.append(context.step)

    count, found = Count(), []
    for resume in (False, True):
        run = wcord.distill(
            mlp(32, 8),
            mlp(4, 5),
            batches(),
            ["info_nce"],
            run=tmp_path / "run",
            resume=resume,
            callbacks=[count],
            **SETTINGS,
        )
        found.append(load_file(run / "student" / "model.safetensors"))
        shutil.rmtree(list_checkpoints(run / "checkpoints")[-1])
        shutil.rmtree(run / "student")
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])
    assert count.steps == [*range(1, 13), 11, 12]


def test_commands_say_what_cannot_be_built_from_a_run(tmp_path: Path) -> None:
    """A wrapped module as teacher and student; without `validation` there are no results."""
    series, example = torch.randn(32, 4, 20), torch.zeros(2, 4, 20)
    teacher, student = (wcord.wrap(nn.Conv1d(4, n, 5), layout="first", example=example) for n in (8, 6))
    data = DataLoader(TensorDataset(series, series), batch_size=16)
    run = wcord.distill(teacher, student, data, ["wcord"], run=tmp_path / "run", steps=2, trackers=[])
    again = "is the config of a wcord.distill run. Its data and modules exist only in the calling program"
    for use, message in (
        (lambda: wcord.evaluate(run), again),
        (lambda: load(run / "config.yaml", ["seed=1"]), again),
        (lambda: wcord.load(run), "which only your program can build"),
    ):
        with pytest.raises(wcord.UserError, match=message) as raised:
            use()
        assert "\n" not in str(raised.value)
    hint = next(note for note in read_run(run).notes if note.startswith("results.json"))
    assert "wcord.distill" in hint
    assert "wcord evaluate" not in hint
    page = report([run]).read_text()
    assert "start the program that called <code>wcord.distill</code>" in page
    assert "wcord evaluate" not in page
    (run / "results.json").write_text('{"student/accuracy": 0.5}')
    assert "wcord evaluate" not in report([run]).read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"losses": ["kdd"]}, "there is no 'kdd', did you mean 'kd'"),
        ({"losses": [{"name": "kd", "heat": 2}]}, r"losses\.kd\.heat"),
        ({"losses": ["kd"], "teacher": mlp(4, 3)}, "requires student and teacher to have logits for the same classes"),
        ({"losses": ["kd"], "teacher": None}, "requires a teacher"),
        ({"data": iter([(X, Y)])}, "can be read only once"),
        ({"data": [X.numpy()]}, "a batch is a ndarray"),
        ({"student": nn.Linear(5, 2)}, "student: Linear does not run on the first batch"),
        ({"student": nn.Unflatten(1, (2, 3))}, r"student: Unflatten|returned a tensor of shape"),
        ({"step": 3}, r"train\.step: Extra inputs"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"teacher": mlp(4), "student": mlp(3), "data": batches(), "losses": ["cosine"]}
    with pytest.raises(wcord.UserError, match=message):
        wcord.distill(**(given | SETTINGS | {"run": tmp_path / "run"} | change))


def test_a_function_of_the_number_of_batches_to_skip(tmp_path: Path) -> None:
    starts: list[int] = []

    def data(start: int) -> Any:
        starts.append(start)
        return ({"teacher": X, "student": X + step} for step in range(start, 100))

    for resume in (False, True):
        run = wcord.distill(
            mlp(4),
            mlp(3),
            data,
            ["cosine"],
            run=tmp_path / "run",
            resume=resume,
            **SETTINGS | {"steps": 6 + 4 * resume},
        )
    assert starts == [0, 0, 0, 6]
    assert len((run / "metrics.jsonl").read_text().splitlines()) >= 3
