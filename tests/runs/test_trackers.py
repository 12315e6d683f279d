"""Trackers and the profile: what they get to see of a run."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.evaluate import evaluate
from pipeline.evaluate.gallery import picture
from pipeline.runs.artifacts import read_embeddings, read_thumbnails
from pipeline.runs.trackers import SENDERS
from pipeline.train import train
from pipeline.train.profiler import ADVICE, STEPS, TRACE, describe_profile

TEACHER = "teacher: {{run: {}/teacher}}"


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


class Fake:
    """A tracker of Accelerate's kind."""

    name = "fake"
    tracker = SimpleNamespace(name="fake")

    def __init__(self, **keywords: Any) -> None:
        self.keywords, self.rows, self.settings, self.finished = keywords, [], {}, False
        type(self).last = self

    last: Any = None

    def start(self) -> None:
        pass

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, float], step: int) -> None:
        self.rows.append({"step": step, **values})

    def finish(self) -> None:
        self.finished = True


def test_trackers_get_the_lines_of_the_log_and_the_settings(make_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "trackio", Fake)
    monkeypatch.setattr("pipeline.runs.trackers.require_package", lambda module, extra: None)
    run = train(configs.load(make_config(), ["train.trackers=[trackio]"]))
    assert Fake.last.rows == rows(run)
    assert Fake.last.settings["train.learning_rate"] == 3e-3
    assert Fake.last.settings["student.encoder.name"] == "cnn5"
    assert Fake.last.keywords["name"] == run.name
    assert Fake.last.finished
    assert not (run / "tensorboard").exists()


def test_tensorboard_holds_the_lines_and_drops_what_a_resumed_run_does_again(make_config: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = make_config()
    run = train(configs.load(path))
    ended = int(time.time())
    (run / "student" / "network.json").unlink()
    for done in sorted((run / "checkpoints").iterdir())[-1:]:
        for file in done.iterdir():
            file.unlink()
        done.rmdir()
    while int(time.time()) == ended:  # TensorBoard orders its files by the second in which they were begun
        time.sleep(0.05)
    train(configs.load(path), resume=True)
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    kept = rows(run)
    assert [event.step for event in board.Scalars("loss")] == [row["step"] for row in kept]
    assert [event.value for event in board.Scalars("loss")] == pytest.approx([row["loss"] for row in kept])


def test_mlflow_in_a_local_folder(make_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    run = train(configs.load(make_config(), ["train.trackers=[mlflow]"]))
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("wcord")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == run.name
    assert found.data.params["train.steps"] == "12"
    history = client.get_metric_history(found.info.run_id, "loss.cross_entropy")
    assert [(m.step, m.value) for m in history] == [
        (row["step"], pytest.approx(row["loss/cross_entropy"])) for row in rows(run)
    ]


@pytest.fixture
def distilled(
    make_config: Any, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], tuple[Path, np.ndarray]]:
    """Train a student under a tracker, which works locally, evaluate it, and hand out its gallery as well."""

    def make(tracker: str) -> tuple[Path, np.ndarray]:
        run = train(configs.load(make_config(teacher=TEACHER.format(runs)), [f"train.trackers=[{tracker}]"]))
        evaluate(run)
        e = read_embeddings(run)
        assert e is not None
        thumbnails = read_thumbnails(run, len(e.keys))
        assert thumbnails is not None
        return run, picture(e, thumbnails)

    return make


def image(path: Path) -> np.ndarray:
    return cv2.imread(str(path))[..., ::-1]


def test_the_gallery_is_shown_in_tensorboard(distilled: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, wanted = distilled("tensorboard")
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    (event,) = board.Images("gallery")
    shown = cv2.imdecode(np.frombuffer(event.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert event.step == 12
    np.testing.assert_array_equal(shown, wanted)
    assert len(board.Scalars("loss")) == len(rows(run))


def test_the_gallery_is_shown_in_the_mlflow_run(
    distilled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="pip install 'wcord[track]'")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    _, wanted = distilled("mlflow")
    client = mlflow.MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("wcord").experiment_id])
    assert found.info.status == "FINISHED"
    np.testing.assert_array_equal(image(next((tmp_path / "mlflow").rglob("images/gallery*.png"))), wanted)


@pytest.mark.slow  # it starts a process of its own
def test_the_gallery_is_shown_in_the_wandb_run(distilled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="pip install 'wcord[track]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run, wanted = distilled("wandb")
    known = json.loads((run / "trackers.json").read_text())["wandb"]
    files = list((run / "wandb").glob(f"offline-run-*-{known}/files/media/images/gallery*.png"))
    assert len(files) == 1
    np.testing.assert_array_equal(image(files[0]), wanted)


@pytest.mark.slow  # it starts a server of its own
def test_the_gallery_is_shown_in_the_trackio_run(
    distilled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="pip install 'wcord[track]'")
    _, wanted = distilled("trackio")
    (file,) = (tmp_path / "trackio").rglob("*.png")
    np.testing.assert_array_equal(image(file), wanted)


def test_a_tracker_that_refuses_the_gallery_leaves_the_results(
    distilled: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: Any) -> None:
        raise ConnectionError("no way there")

    monkeypatch.setitem(SENDERS, "tensorboard", refuse)
    caplog.set_level(logging.INFO)
    run, _ = distilled("tensorboard")
    assert (run / "results.json").is_file()
    assert "tensorboard did not accept the gallery (ConnectionError: no way there)" in caplog.text


def test_a_tracker_that_does_not_start_is_named(make_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(Fake):
        def start(self) -> None:
            raise ValueError("no login")

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Refusing)
    monkeypatch.setattr("pipeline.runs.trackers.require_package", lambda module, extra: None)
    with pytest.raises(UserError, match=r"wandb cannot be started .*no login.* Log in"):
        train(configs.load(make_config(), ["train.trackers=[wandb]"]))


@pytest.mark.parametrize("more", [[], ["train.micro_batch=4"]])
def test_profile_says_what_a_step_spends_its_time_on(
    more: list[str], make_config: Any, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_config(teacher=f"teacher: {{run: {runs / 'teacher'}}}", losses="  cross_entropy: {}\n  wcord: {}")
    run = train(configs.load(path, ["train.steps=15", *more]), profile=True)
    (words,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("profile: ")]
    for part in ADVICE:
        assert f"{part} " in words
    assert "wcord" in words
    assert str(run / TRACE) in words
    names = [event.get("name") for event in json.loads((run / TRACE).read_text())["traceEvents"]]
    assert names.count("optimiser") >= STEPS
    assert names.count("data") >= STEPS
    assert names.count("teacher") >= STEPS


def test_a_profile_changes_nothing_and_short_runs_say_so(make_config: Any, capsys: pytest.CaptureFixture[str]) -> None:
    plain = train(configs.load(make_config("plain")))
    profiled = train(configs.load(make_config("profiled")), profile=True)
    weights = [(run / "student" / "model.safetensors").read_bytes() for run in (plain, profiled)]
    assert weights[0] == weights[1]
    capsys.readouterr()
    train(configs.load(make_config("short"), ["train.steps=2"]), profile=True)
    assert "nothing recorded in 2 steps" in capsys.readouterr().out


def test_words_name_the_dearest_first_and_what_to_do() -> None:
    words = describe_profile({"data": 3.0, "student": 1.0, "losses wcord": 0.5, "losses kd": 0.5}, 10)
    assert words.startswith("profile: a step took 500.0 ms: data 60%, student 20%, losses 20% (wcord 10%, kd 10%).")
    assert "To reduce data: more data.workers" in words
