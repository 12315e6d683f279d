"""The monitored metric: loss and retrieval on held-out samples, with and without labels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import launch
from safetensors.torch import load_file
from shapes_dataset import write_dataset

from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.train import train

EVERY = ("evaluation.every=1 epoch", "train.log_every=1")
PAIRS = "  wcord: {dim: 8, queue: 32}"


def run_config(path: Path, *overrides: str, **keywords: Any) -> Path:
    return train(configs.load(path, overrides), **keywords)


def checks(run: Path, metric: str) -> dict[int, float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row[f"held_out/{metric}"] for row in rows if f"held_out/{metric}" in row}


def best(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "best" / "best.json").read_text())
    return found


@pytest.fixture
def teacher(make_config: Any) -> str:
    run = run_config(make_config("teacher"), "student.modality=rgb", "train.steps=4")
    return f"teacher: {{run: {run}}}"


@pytest.mark.parametrize("monitor", ["loss", "R@1"])
def test_validation_selects_the_best_and_changes_nothing(monitor: str, make_config: Any, teacher: str) -> None:
    run = run_config(make_config("checked", teacher, PAIRS), *EVERY, f"evaluation.monitor={monitor}")
    found = checks(run, monitor)
    assert list(found) == [6, 12]
    about = best(run)
    assert about["monitor"] == monitor
    assert about[monitor] == (min if monitor == "loss" else max)(found.values()) == found[about["step"]]
    plain = run_config(make_config("plain", teacher, PAIRS))
    for name in ("student/model.safetensors", "checkpoints/step_00000012/model.safetensors"):  # with queue, statistics
        one, other = load_file(run / name), load_file(plain / name)
        assert all(torch.equal(one[key], other[key]) for key in one | other)


def test_selecting_the_best_on_the_test_split_triggers_a_warning(
    make_config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_config(shards=write_dataset(tmp_path / "data", {"train": [32], "val": [16], "test": [16]}))
    run_config(path, *EVERY, "train.steps=2")
    assert capsys.readouterr().err.count("best/ is selected on the test split") == 1
    run_config(path, *EVERY, "train.steps=2", "evaluation.split=val", overwrite=True)
    run_config(path, "train.steps=2", overwrite=True)
    assert "best/ is selected" not in capsys.readouterr().err


def test_without_logits_it_is_retrieval_which_chance_does_not_explain(
    make_config: Any, teacher: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = (*EVERY, "train.steps=60", "train.learning_rate=0.01", "evaluation.every=30")
    run = run_config(make_config("student", teacher, PAIRS), *settings)
    assert best(run)["monitor"] == "R@10"
    assert set(checks(run, "R@10")) == {30, 60}
    assert checks(run, "R@1").keys() == checks(run, "median_rank").keys() == {30, 60}
    assert not checks(run, "top1")
    assert max(checks(run, "R@10").values()) > 0.45  # chance is 1 / 3
    assert "step 30/60  validation: R@10 " in caplog.text


def test_with_labels_it_is_the_accuracy_beside_what_is_asked_for(make_config: Any, teacher: str) -> None:
    path = make_config("student", teacher, "  cross_entropy: {}\n  kd: {weight: 2}\n  crd: {weight: 0.1}")
    run = run_config(path, "evaluation.every=12")
    assert best(run)["monitor"] == "top1"
    assert not checks(run, "loss")
    run = run_config(path, "evaluation.every=12", "evaluation.monitor=loss", overwrite=True)
    assert checks(run, "top1")
    terms = checks(run, "loss/cross_entropy")[12], checks(run, "loss/kd")[12]
    assert checks(run, "loss")[12] == pytest.approx(terms[0] + 2 * terms[1])
    assert not checks(run, "loss/crd")  # its bank has training samples only


@pytest.mark.parametrize(
    ("losses", "monitor", "message"),
    [
        ("  crd: {}", "loss", r"evaluation.monitor: loss, but each loss compares with a bank of training samples"),
        (PAIRS, "top1", "evaluation.every: validation requires class logits, but no loss trains them"),
        ("  kd: {}", "mIoU", r"evaluation.monitor: mIoU, but the metric of data.label `label` is top1"),
        ("  cross_entropy: {}", "R@1", r"evaluation.monitor: R@1 is the retrieval of the teacher's features, but"),
    ],
)
def test_what_a_metric_needs_is_checked_before_the_first_step(
    losses: str, monitor: str, message: str, make_config: Any, teacher: str
) -> None:
    path = make_config("student", "" if "cross" in losses else teacher, losses)
    with pytest.raises(UserError, match=message):
        run_config(path, *EVERY, f"evaluation.monitor={monitor}")
    assert not Path(configs.load(path).run).exists()


def test_a_recall_among_too_few_samples_is_refused(make_config: Any, tmp_path: Path, teacher: str) -> None:
    path = make_config("student", teacher, PAIRS, shards=write_dataset(tmp_path / "few", {"train": [32], "test": [5]}))
    with pytest.raises(UserError, match=r"evaluation.monitor: R@10 is always 1, since the split `test` has only 5"):
        run_config(path, *EVERY)
    run = run_config(path, *EVERY, "evaluation.monitor=R@1")
    assert checks(run, "R@1")
    assert not checks(run, "R@5")


def test_a_loss_that_changes_its_state_in_validation_is_refused(
    make_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "counting.py").write_text(
        "import torch\n"
        "from losses import CrossEntropy\n"
        "class Counting(CrossEntropy):\n"
        "    def __init__(self, *dims, **keywords):\n"
        "        super().__init__(*dims, **keywords)\n"
        "        self.register_buffer('calls', torch.zeros(()))\n"
        "    def forward(self, *features):\n"
        "        self.calls += 1\n"
        "        return super().forward(*features)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"losses.counting:Counting: changes its buffers in validation"):
        run_config(make_config("run", "", "  counting:Counting: {}"), *EVERY, "evaluation.monitor=loss")


def test_a_resumed_run_with_another_monitor_keeps_both(make_config: Any, teacher: str) -> None:
    path = make_config("student", teacher, PAIRS)
    stopping = "train.callbacks=[{name: early_stopping, patience: 9}]"
    run = run_config(path, *EVERY, stopping, "train.steps=6", "evaluation.monitor=loss")
    before = best(run)
    run_config(path, *EVERY, stopping, resume=True)
    assert best(run)["monitor"] == "R@10"
    assert best(run)["step"] == 12
    assert json.loads((run / "best_loss" / "best.json").read_text()) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("monitor", "names"), [("loss", ["loss", "loss/kd", "loss/wcord"]), ("R@1", ["R@1", "R@10", "median_rank"])]
)
def test_two_processes_measure_what_one_does(monitor: str, names: list[str], make_config: Any, teacher: str) -> None:
    """Each resumes from the same checkpoint, whose validation is missing, and makes up for it before the next step."""
    path = make_config("student", teacher, "  kd: {}\n  wcord: {dim: 8, queue: 32}")
    one = run_config(path, "train.steps=2")
    two = Path(shutil.copytree(one, f"{one}_two"))
    settings = ("train.steps=3", "evaluation.every=2", f"evaluation.monitor={monitor}")
    run_config(path, *settings, resume=True)
    done = launch(["train", str(path), *settings, f"run={two}", "data.workers=1", "--resume"])
    assert done.returncode == 0, done.stderr
    for name in names:
        assert checks(two, name)[2] == pytest.approx(checks(one, name)[2], rel=1e-4), name
