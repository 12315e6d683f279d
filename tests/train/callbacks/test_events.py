"""Callbacks of the user: every event once, state in checkpoints, errors by name, a run that they end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.runs.checkpoint import list_checkpoints
from pipeline.train import train
from pipeline.train.callbacks import Callback

OUTSIDE = '''
import json, os
import torch
import wcord


class Diary(wcord.Callback):
    """Writes every event to a file, and counts the steps in its state."""

    def __init__(self, *, file: str, kill_at: int = 0) -> None:
        self.file, self.kill_at = file, kill_at
        self.count, self.sum = 0, torch.zeros(1, dtype=torch.float64)

    def note(self, event, context):
        with open(self.file, "a") as file:
            file.write(json.dumps([event, context.step, self.count, os.environ.get("RANK", "0")]) + "\\n")

    def on_start(self, context):
        self.note("start", context)

    def on_step(self, context):
        self.count += 1
        self.sum += context.metrics["loss"].double()
        self.note("step", context)
        if context.step == self.kill_at:
            os.kill(os.getpid(), 9)

    def on_validation(self, context):
        assert set(context.metrics) == {"top1"}, context.metrics
        self.note("validation", context)

    def on_checkpoint(self, context):
        self.note("checkpoint", context)

    def on_end(self, context):
        assert (context.run / "student" / "model.safetensors").is_file()
        self.note("end", context)

    def state_dict(self):
        return {"count": self.count, "sum": self.sum}

    def load_state_dict(self, state):
        self.count, self.sum = state["count"], state["sum"]
'''
EVERY = ("evaluation.every=6", "train.log_every=1")


def events(path: Path) -> list[tuple[str, int]]:
    return [(event, step) for event, step, *_ in map(json.loads, path.read_text().splitlines())]


def expected(first: int, last: int, end: bool = True) -> list[tuple[str, int]]:
    found = [("start", first - 1)]
    for step in range(first, last + 1):
        found.append(("step", step))
        found += [("validation", step)] * (step % 6 == 0)
        found += [("checkpoint", step)] * (step % 5 == 0 or step == 12)
    return found + [("end", last)] * end


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "diary.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("diary", None)
    return tmp_path / "events.jsonl"


def test_every_event_comes_once_and_in_order(make_config: Any, outside: Path) -> None:
    callback = f"train.callbacks=[{{name: 'diary:Diary', file: {outside}}}]"
    train(configs.load(make_config(), [callback, *EVERY]))
    assert events(outside) == expected(1, 12)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_callback_survives_a_kill(make_config: Any, outside: Path, processes: int) -> None:
    """Killed after step 8, it resumes from step 5 with the state of step 5, in the first process only."""
    path = make_config()
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    start = [sys.executable, *(launcher if processes > 1 else []), "-m", "wcord", "train", str(path), *EVERY]
    places = os.pathsep.join([str(outside.parent), os.environ.get("PYTHONPATH", "."), str(Path(__file__).parents[3])])
    environment = os.environ | {"PYTHONPATH": places, "ACCELERATE_USE_CPU": "true"}

    def run(kill_at: int, *options: str) -> int:
        callback = f"train.callbacks=[{{name: 'diary:Diary', file: {outside}, kill_at: {kill_at}}}, ema]"
        command = [*start, callback, "train.timeout=20", *options]
        return subprocess.run(command, env=environment, capture_output=True, timeout=120).returncode

    assert run(8) == (-signal.SIGKILL if processes == 1 else 1)
    assert events(outside) == expected(1, 8, end=False)
    outside.unlink()
    assert run(0, "--resume") == 0
    assert events(outside) == expected(6, 12)
    lines = list(map(json.loads, outside.read_text().splitlines()))
    assert [count for event, _, count, _ in lines if event == "step"] == list(range(6, 13))
    assert {rank for *_, rank in lines} == {"0"}


class Faulty(Callback):
    def on_step(self, context: Any) -> None:
        if context.step == 3:
            raise ValueError("no such thing")


def test_a_callback_that_fails_is_named(make_config: Any) -> None:
    with pytest.raises(UserError, match=r"test_events:Faulty: on_step at step 3 failed: ValueError: no such thing"):
        train(configs.load(make_config()), callbacks=[Faulty()])


class Stopping(Callback):
    def __init__(self, *, step: int = 7, event: str = "on_step") -> None:
        self.step = step
        setattr(self, event, self._stop)

    def _stop(self, context: Any) -> None:
        if context.step == self.step:
            context.stop("enough")


@pytest.mark.parametrize(("event", "step"), [("on_step", 7), ("on_validation", 6)])
def test_a_callback_ends_a_run_which_then_counts_as_finished(
    make_config: Any, caplog: pytest.LogCaptureFixture, event: str, step: int
) -> None:
    path, own = make_config(), [Stopping(step=step, event=event)]
    with caplog.at_level("INFO"):
        run = train(configs.load(path, ["evaluation.every=6"]), callbacks=own)
    assert "Stopping ended the run: enough." in caplog.text
    assert (run / "student" / "model.safetensors").is_file()
    assert list_checkpoints(run / "checkpoints")[-1].name == f"step_{step:08d}"
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log if "loss" in row] == [4, step]
    with caplog.at_level("INFO"):
        train(configs.load(path, ["evaluation.every=6"]), resume=True, callbacks=own)
    assert f"ended at step {step} by" in caplog.text
    train(configs.load(path, ["evaluation.every=6"]), resume=True)  # without the callback, it resumes
    assert list_checkpoints(run / "checkpoints")[-1].name == "step_00000012"


class Pickled(Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"object": object()}


def test_a_state_that_is_neither_tensor_nor_json_is_refused(make_config: Any) -> None:
    with pytest.raises(UserError, match=r"Pickled: state_dict: 'object' is a object; checkpoints store tensors and"):
        train(configs.load(make_config()), callbacks=[Pickled()])


def test_tensors_and_values_come_back_from_a_checkpoint(make_config: Any, outside: Path) -> None:
    """The state of a resumed run equals that of a run that was never stopped, also of two callbacks of one class."""
    one, two = (f"{{name: 'diary:Diary', file: {outside}{i}}}" for i in "ab")
    path = make_config()
    run = train(configs.load(path, [f"train.callbacks=[{one}, {two}]"]))
    newest = list_checkpoints(run / "checkpoints")[-1]
    whole = (newest / "callbacks.safetensors").read_bytes(), (newest / "callbacks.json").read_bytes()
    shutil.rmtree(newest)
    shutil.rmtree(run / "student")
    train(configs.load(path, [f"train.callbacks=[{one}, {two}]"]), resume=True)
    assert whole == ((newest / "callbacks.safetensors").read_bytes(), (newest / "callbacks.json").read_bytes())
    assert json.loads(whole[1])["callbacks"][1]["state"] == {"count": 12}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("emma", r"train.callbacks.0: callback: there is no 'emma', did you mean 'ema'\?"),
        ("{name: ema, decay: 2}", r"train.callbacks.0.decay: Input should be less than 1; keywords of EMA: decay"),
        ("{name: ema, rate: 2}", r"train.callbacks.0.rate: .*; keywords of EMA: decay"),
        ("{decay: 2}", r"train.callbacks.0: must be a name, or \{name"),
        ("os:getcwd", r"train.callbacks.0: os:getcwd: is not a subclass of .*Callback"),
    ],
)
def test_a_wrong_callback_is_refused_before_the_data_is_opened(make_config: Any, written: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(configs.load(make_config(shards=Path("nowhere")), [f"train.callbacks=[{written}]"]))


def test_a_class_instead_of_an_instance_is_refused(make_config: Any) -> None:
    with pytest.raises(UserError, match=r"Faulty is not an instance of wcord\.Callback"):
        train(configs.load(make_config()), callbacks=[Faulty])  # type: ignore[list-item]


def test_the_metrics_of_a_step_are_those_of_the_log(make_config: Any) -> None:
    seen: list[float] = []

    class Losses(Callback):
        def on_step(self, context: Any) -> None:
            assert isinstance(context.metrics["loss/cross_entropy"], torch.Tensor)
            seen.append(float(context.metrics["loss"]))

    run = train(configs.load(make_config(), ["train.log_every=1"]), callbacks=[Losses()])
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert seen == pytest.approx([row["loss"] for row in log])
