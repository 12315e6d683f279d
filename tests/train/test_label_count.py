"""The number of labels that `data.label_fraction` leaves is logged, and 0 is refused before the first step."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from launching import launch

from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.data.source import OpenDataset
from pipeline.train import label_count, train


def logged(config: Any, caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.INFO):
        source = OpenDataset.from_config(config).split("train", config.data.label_fraction, config.seed)
        label_count.say_labels(config, [source])
    return caplog.messages


def test_no_labels_are_refused_before_the_first_step(make_config: Any) -> None:
    config = configs.load(make_config(), ["data.label_fraction=1e-6"])
    expected = r"data\.label_fraction: 1e-06 of \d+ .* leaves no label, but losses\.cross_entropy requires labels"
    with pytest.raises(UserError, match=expected):
        train(config)
    assert not Path(config.run).exists()


def test_without_a_loss_that_needs_labels_none_is_fine(
    make_config: Any, runs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_config("student", f"teacher: {{run: {runs / 'teacher'}}}", "  kd: {}")
    (line,) = logged(configs.load(path, ["data.label_fraction=1e-6"]), caplog)
    assert line.startswith("labels: 0 of ")


def test_the_labels_of_the_stream_are_counted(make_config: Any, caplog: pytest.LogCaptureFixture) -> None:
    config = configs.load(make_config(), ["data.label_fraction=0.5"])
    source = OpenDataset.from_config(config).split("train", 0.5, config.seed)
    labels = [int(raw["label.txt"]) for raw in source.read(source.task.members) if source.task.labels(raw)]
    per_class = [labels.count(number) for number in range(3)]
    assert logged(config, caplog) == [
        f"labels: {len(labels)} of {source.samples} training samples, {min(per_class)} to {max(per_class)} per class"
    ]
    assert logged(configs.load(make_config()), caplog) == []


def test_a_large_dataset_is_not_read(
    make_config: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_count, "MOST", 10)
    monkeypatch.setattr(label_count, "count_labels", lambda source: pytest.fail("reads the shards"))
    (line,) = logged(configs.load(make_config(), ["data.label_fraction=0.25"]), caplog)
    assert line.startswith("labels: about ")
    assert line.endswith("training samples (data.label_fraction)")


def test_a_run_says_it_at_the_start(make_config: Any, capsys: pytest.CaptureFixture[str]) -> None:
    train(configs.load(make_config(), ["data.label_fraction=0.5", "train.steps=2"]))
    assert capsys.readouterr().out.startswith("labels: ")


@pytest.mark.slow
@pytest.mark.parametrize(("fraction", "code"), [(0.5, 0), (1e-6, 2)])
def test_one_of_two_processes_counts_for_both(make_config: Any, fraction: float, code: int) -> None:
    done = launch(["train", str(make_config()), f"data.label_fraction={fraction}", "train.steps=2", "train.warmup=1"])
    assert done.returncode == code, done.stderr
    assert done.stdout.count("labels: ") == (code == 0)
    assert ("leaves no label, but losses.cross_entropy requires labels" in done.stderr) == (code == 2)
