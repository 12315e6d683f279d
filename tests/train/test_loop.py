"""The training loop: learns, logs, resumes to the same bits, and says what is wrong before it starts."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import Started, launch
from safetensors.torch import load_file
from shapes_dataset import members, write_dataset

from losses import CrossEntropy, Features, LocalTransport, PositionTransport
from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.config.components import find_loss
from pipeline.data.dataset import MANIFEST
from pipeline.data.manifest import load_dataset, write_shard
from pipeline.evaluate.cost import training_cost
from pipeline.models.build import build_model
from pipeline.models.distillation import Distillation
from pipeline.models.network import load_network
from pipeline.runs.checkpoint import Checkpoint, DamagedError, list_checkpoints, load_checkpoint, save_checkpoint
from pipeline.train import train, validation
from pipeline.train.signals import Stop, Stopped

ROOT = Path(__file__).parents[2]
WCORD = "  cross_entropy: {}\n  kd: {weight: 2}\n  wcord: {dim: 8, queue: 32}"


def run_config(path: Path, *overrides: str, **keywords: Any) -> Path:
    return train(configs.load(path, overrides), **keywords)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "student" / "model.safetensors")


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def teacher(make_config: Any) -> str:
    path = make_config("teacher")
    run = run_config(path, "student.modality=rgb", "train.steps=4")
    return f"teacher: {{run: {run}}}"


def test_a_supervised_run_learns_and_leaves_what_it_should(make_config: Any) -> None:
    run = run_config(
        make_config(), "train.steps=60", "evaluation.every=30", "train.log_every=10", "train.learning_rate=0.02"
    )
    log = lines(run)
    assert [row["step"] for row in log if "loss" in row] == [10, 20, 30, 40, 50, 60]
    assert log[-2]["loss"] < 0.7 * log[0]["loss"]
    checked = [row["held_out/top1"] for row in log if "held_out/top1" in row]
    assert len(checked) == 2
    assert checked[-1] > 0.5
    assert {"loss/cross_entropy", "lr", "grad_norm", "samples_per_second", "data_wait", "epoch"} <= log[0].keys()
    assert configs.load(run / "config.yaml").train.steps == 60
    assert (run / "config.yaml").read_text().startswith("# wcord ")
    assert load_network(run / "student").classes == ["disc", "square", "cross"]
    assert [p.name for p in list_checkpoints(run / "checkpoints")] == ["step_00000055", "step_00000060"]
    assert any((run / "tensorboard").iterdir())


def test_distillation_logs_every_term_and_never_touches_the_teacher(make_config: Any, teacher: str) -> None:
    path = make_config("student", teacher, WCORD)
    folder = Path(configs.load(path).teacher.run or "")  # type: ignore[union-attr]
    before = weights(folder)
    run = run_config(path)
    row = lines(run)[-1]
    assert row["loss"] == pytest.approx(row["loss/cross_entropy"] + 2 * row["loss/kd"] + row["loss/wcord"], rel=1e-4)
    assert {"wcord/global/similarity_gap", "wcord/local/plan_diagonal", "wcord/global/effective_rank"} <= row.keys()
    assert not any(
        key.startswith("teacher.") for key in load_file(list_checkpoints(run / "checkpoints")[-1] / "model.safetensors")
    )
    after = weights(folder)
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("stop", [5, 10])
def test_a_resumed_run_ends_with_the_same_bits(make_config: Any, teacher: str, stop: int) -> None:
    whole = run_config(make_config("whole", teacher, WCORD), "train.keep_checkpoints=9", "train.log_every=1")
    cut = Path(str(whole).replace("whole", "cut"))
    shutil.copytree(whole, cut)
    for checkpoint in list_checkpoints(cut / "checkpoints"):
        if int(checkpoint.name[5:]) > stop:
            shutil.rmtree(checkpoint)
    shutil.rmtree(cut / "student")
    run_config(make_config("cut", teacher, WCORD), "train.keep_checkpoints=9", "train.log_every=1", resume=True)
    one, two = weights(whole), weights(cut)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert [r["step"] for r in lines(cut)] == [r["step"] for r in lines(whole)]
    assert [r["loss"] for r in lines(cut)] == [r["loss"] for r in lines(whole)]


def test_going_on_with_other_workers_is_said(make_config: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_config()
    train(configs.load(path))
    train(configs.load(path, ["train.steps=13", "data.workers=1"]), resume=True)
    assert "was written with data.workers=0; now it is 1. Batches contain other samples" in capsys.readouterr().err


def test_a_finished_run_is_neither_repeated_nor_overwritten_by_accident(make_config: Any) -> None:
    path = make_config()
    run = run_config(path)
    made = (run / "student" / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(UserError, match=r"already contains a run.*--resume.*--overwrite"):
        run_config(path)
    run_config(path, resume=True)
    assert (run / "student" / "model.safetensors").stat().st_mtime_ns == made
    run_config(path, overwrite=True)
    assert (run / "student" / "model.safetensors").stat().st_mtime_ns != made


def test_a_run_killed_before_its_student_was_written_still_ends(make_config: Any) -> None:
    path = make_config()
    run = run_config(path)
    before = weights(run)
    shutil.rmtree(run / "student")
    run_config(path, resume=True)
    assert all(torch.equal(before[key], value) for key, value in weights(run).items())


@pytest.mark.parametrize("fault", ["no weights", "half of the weights", "no description", "half of a description"])
def test_a_student_that_was_not_written_whole_is_written_again(make_config: Any, fault: str) -> None:
    path = make_config()
    run = run_config(path)
    before = weights(run)
    target = run / "student" / ("model.safetensors" if "weights" in fault else "network.json")
    data = target.read_bytes()
    target.unlink()  # not written over: the weights before are read from it
    if "half" in fault:
        target.write_bytes(data[: len(data) // 2])
    run_config(path, resume=True)
    assert all(torch.equal(before[key], value) for key, value in weights(run).items())
    assert load_network(run / "student").classes == ["disc", "square", "cross"]


def test_a_finished_student_is_not_trained_anew_for_want_of_checkpoints(make_config: Any) -> None:
    path = make_config()
    run = run_config(path, resume=True)  # as on a cluster, the first time too
    shutil.rmtree(run / "checkpoints")
    made = (run / "student" / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(UserError, match=r"contains a finished student, but no checkpoint to resume from.*--overwrite"):
        run_config(path, resume=True)
    assert (run / "student" / "model.safetensors").stat().st_mtime_ns == made
    run_config(path, overwrite=True)
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "student")
    run_config(path, resume=True)
    assert (run / "student" / "network.json").exists()


@pytest.mark.parametrize("how", [{"overwrite": True}, {"resume": True}])
def test_an_earlier_end_is_not_told_of_a_new_start(make_config: Any, how: dict[str, bool]) -> None:
    path = make_config()
    run = run_config(path)
    (run / "nonfinite_rank1.json").write_text("{}")
    run_config(path, "train.steps=14", **how)
    assert not list(run.glob("nonfinite*"))


def test_more_steps_say_what_becomes_of_results_and_schedule(
    make_config: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_config()
    run = run_config(path)
    (run / "results.json").write_text("{}")
    capsys.readouterr()
    run_config(path, "train.steps=14", resume=True)
    said = capsys.readouterr().out.splitlines()
    assert f"{run}: the evaluation of step 12 (results.json, evaluation/) is removed; evaluate again." in said
    assert f"{run}: the learning rate schedule now ends at step 14, not 12." in said
    run_config(path, "train.steps=16", "train.schedule=step", "train.milestones=[9]", resume=True)
    again = capsys.readouterr().out
    assert "is removed" not in again
    assert "schedule now ends" not in again


def test_a_run_goes_on_after_a_log_line_that_cannot_be_read(make_config: Any) -> None:
    path = make_config()
    run = run_config(path)
    log = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join([log[0], b'{"step": 5, "lo\x00\xff\n', b"[1]\n", *log[1:]]))
    run_config(path, "train.steps=16", resume=True)
    assert [row["step"] for row in lines(run)] == [4, 8, 12, 16]


@pytest.mark.parametrize("losses", ["  cross_entropy: {}", "  cross_entropy: {}\n  crd: {negatives: 8}"])
def test_a_checkpoint_goes_on_over_the_same_shards_only(
    make_config: Any, teacher: str, tmp_path: Path, losses: str
) -> None:
    data = write_dataset(tmp_path / "data", {"train": [24, 16], "test": [6]})
    path = make_config("student", teacher, losses, shards=data)
    run = run_config(path)
    data.rename(tmp_path / "moved")
    run_config(path, f"data.shards={tmp_path / 'moved'}", "train.steps=14", resume=True)
    write_dataset(data, {"train": [24, 24], "test": [6]})
    with pytest.raises(UserError, match=r"step_00000014: the training shards have changed"):
        run_config(path, "train.steps=16", resume=True)
    for checkpoint in (run / "checkpoints").glob("*/checkpoint.json"):  # as earlier versions left them
        about = json.loads(checkpoint.read_text())
        del about["identity"]["shards"], about["digest"]
        checkpoint.write_text(json.dumps(about))
    if "crd" in losses:
        with pytest.raises(
            UserError, match=r"the weights of the checkpoint do not match: .*size mismatch.*--overwrite"
        ):
            run_config(path, "train.steps=16", resume=True)
    else:
        run_config(path, "train.steps=16", resume=True)


def test_a_check_on_a_split_without_labels_is_refused_before_the_first_step(make_config: Any, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", {"train": [32], "test": [6]})
    about = load_dataset(data)
    samples = [(f"s{i:05d}", {k: v for k, v in members(i).items() if k != "label.txt"}) for i in range(32, 38)]
    about.splits["test"] = [write_shard(data / "test-000000.tar", samples)]
    (data / MANIFEST).write_text(about.model_dump_json())
    path = make_config(shards=data)
    with pytest.raises(
        UserError,
        match=r"evaluation.every: requires labelled samples in evaluation.split, .* Set evaluation.every to 0",
    ):
        run_config(path, "evaluation.every=6")
    assert not Path(configs.load(path).run).exists()
    run_config(path, "evaluation.every=6", "data.label=parity")


def test_a_run_that_goes_on_is_not_taken_for_finished(make_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_config()
    run = run_config(path)
    monkeypatch.setattr("pipeline.train.resume.save_checkpoint", lambda *_: (_ for _ in ()).throw(UserError("killed")))
    with pytest.raises(UserError, match="killed"):
        run_config(path, "train.steps=20", resume=True)
    assert not (run / "student").exists()


def test_overwriting_with_a_wrong_config_keeps_the_old_run(make_config: Any, tmp_path: Path) -> None:
    path = make_config()
    run = run_config(path)
    (run / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not found"):
        run_config(path, "data.shards=nowhere", overwrite=True)
    assert (run / "student" / "network.json").exists()
    run_config(path, overwrite=True)
    assert (run / "notes.txt").read_text() == "mine"


def test_weights_that_are_not_finite_are_never_saved(make_config: Any) -> None:
    path = make_config()
    with pytest.raises(UserError, match=r"not finite"):
        run_config(path, "train.learning_rate=1e30", "train.clip=1e30", "train.warmup=0", "train.log_every=100")
    assert not list_checkpoints(Path(configs.load(path).run) / "checkpoints")


def test_a_checkpoint_of_another_student_is_refused_by_name(make_config: Any) -> None:
    path = make_config()
    run_config(path)
    with pytest.raises(UserError, match=r"step_00000012: student changed since it was written .*\"?width'?\"?: 4"):
        run_config(path, "student.encoder.width=6", "train.steps=20", resume=True)


def test_a_checkpoint_of_an_older_default_is_refused_by_name(make_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_config()
    run_config(path)
    older: Any = find_loss("cross_entropy").__init__
    monkeypatch.setitem(older.__kwdefaults__, "label_smoothing", 0.1)
    with pytest.raises(
        UserError, match=r"losses changed since it was written .*0\.0.* in the checkpoint, .*0\.1.* in this run"
    ) as told:
        run_config(path, "train.steps=20", resume=True)
    assert "older version" not in str(told.value)


def test_a_checkpoint_from_before_a_keyword_is_told_to_be_of_an_older_version(make_config: Any) -> None:
    path = make_config()
    run = run_config(path)
    about = list_checkpoints(run / "checkpoints")[-1] / "checkpoint.json"
    found = json.loads(about.read_text())
    del found["identity"]["losses"]["cross_entropy"]["label_smoothing"], found["digest"]
    about.write_text(json.dumps(found))
    with pytest.raises(
        UserError, match=r"losses changed since it was written .* If an older version wrote it, resume with"
    ):
        run_config(path, "train.steps=20", resume=True)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "checkpoint.json"])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_used(
    make_config: Any, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_config()
    run = run_config(path)
    before = weights(run)
    shutil.rmtree(run / "student")
    target = list_checkpoints(run / "checkpoints")[-1] / name
    data = bytearray(target.read_bytes())
    data[len(data) // 2] ^= 16  # whole by its length
    target.write_bytes(data[:-3] if name == "checkpoint.json" else data)
    run_config(path, resume=True)
    assert re.search(r"step_00000012: damaged.*Resuming from the previous one, step_00000010", capsys.readouterr().err)
    assert all(torch.equal(before[key], value) for key, value in weights(run).items())


@pytest.mark.slow
def test_no_bit_of_what_is_said_about_a_checkpoint_changes_unseen(tmp_path: Path) -> None:
    """Most readings of a changed digit are as good as the true one, and a changed name would blame the config."""
    identity = {"student": {"width": 4}, "seed": 0}
    path = save_checkpoint(tmp_path, Checkpoint(12, {"x": torch.ones(2)}, {}, identity, 2, 1), keep=2)
    whole, about = load_checkpoint(path, identity), path / "checkpoint.json"
    written = about.read_bytes()
    for place in range(len(written)):
        for bit in range(8):
            data = bytearray(written)
            data[place] ^= 1 << bit
            about.write_bytes(data)
            try:
                found = load_checkpoint(path, identity)
            except DamagedError:
                continue
            except UserError as error:  # a version that this one does not know may have sealed it otherwise
                assert "written in format" in str(error)  # noqa: PT017
                continue
            assert (found.step, found.identity, found.ranks, found.workers) == (
                whole.step,
                whole.identity,
                whole.ranks,
                whole.workers,
            )


def test_a_damaged_checkpoint_does_not_count_as_one_of_the_newest(
    make_config: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_config()
    folder = run_config(path, "train.steps=14") / "checkpoints"
    (folder / "step_00000014" / "optimizer.pt").write_bytes(b"half of a file")
    run_config(path, "train.steps=12", "train.keep_checkpoints=1", resume=True)
    assert "step_00000010; the damaged one is renamed" in capsys.readouterr().err
    assert [p.name for p in list_checkpoints(folder)] == ["step_00000012"]
    assert sorted(p.name for p in folder.iterdir()) == ["damaged_step_00000014", "step_00000012"]


def test_when_all_checkpoints_are_damaged_it_says_so(make_config: Any) -> None:
    run = run_config(make_config())
    for checkpoint in list_checkpoints(run / "checkpoints"):
        (checkpoint / "model.safetensors").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"step_00000010: damaged.*There is no earlier undamaged checkpoint; .*--overwrite"
    ):
        run_config(make_config(), resume=True)


def test_the_best_student_is_kept(make_config: Any) -> None:
    run = run_config(make_config(), "train.steps=40", "evaluation.every=10", "train.learning_rate=0.02")
    checked = {row["step"]: row["held_out/top1"] for row in lines(run) if "held_out/top1" in row}
    best = json.loads((run / "best" / "best.json").read_text())
    assert best["top1"] == max(checked.values()) == checked[best["step"]]
    assert load_network(run / "best").classes == ["disc", "square", "cross"]


def test_who_asks_to_stop_does_not_wait_for_a_check_which_is_made_up_for(
    make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("train.steps=8", "evaluation.every=2", "train.learning_rate=0.02")
    whole = run_config(make_config(), *settings)
    steps, checks = iter(range(1, 99)), []
    check = validation.held_out_score
    monkeypatch.setattr(Stop, "asked", lambda self, accelerator: next(steps) == 4)
    monkeypatch.setattr(validation, "held_out_score", lambda *about: checks.append(None) or check(*about))
    with pytest.raises(Stopped):
        run_config(make_config("stopped"), *settings)
    assert len(checks) == 1
    for _ in range(2):  # the second time nothing is left to do
        run = run_config(make_config("stopped"), *settings, resume=True)
        assert len(checks) == 4

    def checked(run: Path) -> list[tuple[float, float]]:
        return [(row["step"], row["held_out/top1"]) for row in lines(run) if "held_out/top1" in row]

    assert checked(run) == checked(whole)
    assert (run / "best" / "best.json").read_text() == (whole / "best" / "best.json").read_text()


def test_steps_that_are_not_finite_are_not_taken(make_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt = {3, 4, 8}
    calls = iter(range(1, 99))
    forward = Distillation.forward

    def spoil(self: Distillation, batch: Any, **keywords: Any) -> Any:
        step = next(calls)
        if step in spoilt:
            batch["student"] = batch["student"] * float("nan")
        return forward(self, batch, **keywords)

    monkeypatch.setattr(Distillation, "forward", spoil)
    run = run_config(make_config(), "train.log_every=1")
    assert [row["step"] for row in lines(run)] == [step for step in range(1, 13) if step not in spoilt]
    assert lines(run)[-1]["nonfinite_steps"] == 3
    calls = iter([1, 2, 3, 4, 5, 6])  # two more
    run_config(make_config(), "train.log_every=1", "train.steps=18", resume=True)
    assert lines(run)[-1]["nonfinite_steps"] == 5
    assert training_cost(run, 16)["train/nonfinite_steps"] == 5
    assert all(torch.isfinite(value).all() for value in weights(run).values())


def test_ten_such_steps_in_a_row_end_the_run_with_a_diagnosis(
    make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the head's gradient is not finite, and the encoder's is."""

    def spoil(self: CrossEntropy, student: Features, *others: Any) -> torch.Tensor:
        student.pooled.register_hook(torch.zeros_like)
        assert student.logits is not None
        return student.logits.sum() * torch.nan

    monkeypatch.setattr(CrossEntropy, "forward", spoil)
    with pytest.raises(UserError, match=r"step 10: the loss is not finite \(cross_entropy\), in 10 consecutive steps"):
        run_config(make_config())
    about = json.loads((Path(configs.load(make_config()).run) / "nonfinite_rank0.json").read_text())
    assert about["losses"] == {"cross_entropy": "nan"}
    assert len(about["keys"]) == len(about["features"]["student"]) == 16
    assert about["gradient"] == {
        "student.encoder.layers": "0.0",
        "student.head.weight": "nan",
        "student.head.bias": "nan",
    }
    assert about["weights"].keys() == about["gradient"].keys()
    assert all(math.isfinite(float(norm)) for norm in [*about["weights"].values(), *about["features"]["student"]])


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_ends_a_run_with_a_checkpoint(make_config: Any, tmp_path: Path, number: int) -> None:
    steps = ("train.steps=60", "train.log_every=1", "data.workers=2")
    whole = run_config(make_config("whole"), *steps)
    path = make_config("cut")
    command = [sys.executable, "-m", "pipeline", "train", str(path), *steps]
    cut = Path(configs.load(path).run)
    started = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert started.stdout is not None
    for line in started.stdout:
        if line.startswith("step 7/"):
            started.send_signal(number)
            time.sleep(0.02)
            started.send_signal(number)  # as `timeout` does, which sends it to the process and to its group
            break
    said = started.stdout.read()
    assert started.wait(60) == 128 + number, said
    stopped = int(re.search(r"stopped at step (\d+) by a signal; continue with --resume", said)[1])  # type: ignore[index]
    assert list_checkpoints(cut / "checkpoints")[-1].name == f"step_{stopped:08d}"
    run_config(path, *steps, resume=True)
    assert all(torch.equal(weights(whole)[key], value) for key, value in weights(cut).items())


def test_checkpoints_keep_the_newest_and_round_trip(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        state = {"x": torch.full((2,), float(step))}
        save_checkpoint(tmp_path, Checkpoint(step, state, {"lr": 0.1}, {"student": "s"}), keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step_00000002", "step_00000003"]
    loaded = load_checkpoint(list_checkpoints(tmp_path)[-1], {"student": "s"})
    assert loaded.step == 3
    assert loaded.optimizer == {"lr": 0.1}
    assert torch.equal(loaded.model["x"], torch.full((2,), 3.0))


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="needs the right to mount a small tmpfs")
def test_a_full_disk_leaves_the_checkpoint_before_it_whole(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        small = Checkpoint(1, {"x": torch.zeros(1000)}, {}, {})
        save_checkpoint(disk, small, keep=2)
        large = Checkpoint(2, {"x": torch.zeros(400_000)}, {"m": torch.zeros(400_000)}, {})
        with pytest.raises(UserError, match=r"step_00000002: the checkpoint could not be written.*step_00000001"):
            save_checkpoint(disk, large, keep=2)
        assert [p.name for p in disk.iterdir()] == ["step_00000001"]
        assert load_checkpoint(list_checkpoints(disk)[-1], {}).step == 1
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_kd_refuses_a_teacher_of_other_classes(make_config: Any) -> None:
    parity = run_config(make_config("parity"), "data.label=parity", "train.steps=2")
    path = make_config("student", f"teacher: {{run: {parity}}}", "  kd: {}")
    with pytest.raises(UserError, match=r"losses.kd: requires a teacher with the same classes.*3 classes.*2 classes"):
        run_config(path)
    run_config(make_config("features", f"teacher: {{run: {parity}}}", "  wcord: {dim: 8}"))


def test_a_teacher_with_class_names_is_no_riddle_to_data_without(make_config: Any, tmp_path: Path) -> None:
    named = run_config(make_config("named"), "train.steps=2")
    data = write_dataset(tmp_path / "data", {"train": [32], "test": [16]})
    about = load_dataset(data)
    about.classes["label"] = ["0", "1", "2"]
    (data / MANIFEST).write_text(about.model_dump_json())
    cure = r"3 classes \(0, 1, 2\); .* \(disc, square, cross\)\. Set data\.label or data\.classes as for the teacher\."
    with pytest.raises(UserError, match=cure):
        run_config(make_config("numbered", f"teacher: {{run: {named}}}", "  kd: {}", shards=data))
    parity = run_config(make_config("parity"), "data.label=parity", "train.steps=2")
    with pytest.raises(UserError, match=r"\(even, odd\)\. Remove this loss"):
        run_config(make_config("other", f"teacher: {{run: {parity}}}", "  kd: {}"))


def test_fitnet_is_built_by_the_sizes_of_the_maps(make_config: Any) -> None:
    large = run_config(make_config("large"), "student.encoder.size=64", "train.steps=1")
    path = make_config("student", f"teacher: {{run: {large}}}", "  fitnet: {}")
    with pytest.raises(UserError, match=r"losses.fitnet: .* student's map \(2 x 2\) to the teacher's \(8 x 8\)"):
        run_config(path)
    run_config(path, "student.encoder.size=32", "train.steps=2")


def test_an_unfinished_teacher_is_named(make_config: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere/student/network.json: not found"):
        run_config(make_config("student", f"teacher: {{run: {tmp_path}/nowhere}}", "  wcord: {}"))


@pytest.mark.slow
def test_the_loss_of_two_processes_follows_that_of_one(make_config: Any, teacher: str) -> None:
    path = make_config("student", teacher, WCORD)
    # A learning rate of almost 0: then both runs see the same network, and only the batches' composition differs.
    steady = ["train.learning_rate=1e-12", "data.crop=[1.0,1.0]", "data.flip=false"]
    alone = run_config(path, *steady)
    two = Path(f"{alone}_two")
    done = launch(["train", str(path), *steady, f"run={two}"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 12/12") == 1  # one process speaks
    for a, b in zip(lines(alone), lines(two), strict=True):
        assert b["loss/cross_entropy"] == pytest.approx(a["loss/cross_entropy"], rel=0.15)
        assert b["loss/kd"] == pytest.approx(a["loss/kd"], rel=0.25)
        assert b["loss/wcord"] == pytest.approx(a["loss/wcord"], rel=0.1)


@pytest.mark.parametrize("parts", ["null", pytest.param("3", marks=pytest.mark.slow)])
def test_two_processes_train_one_model(make_config: Any, teacher: str, parts: str) -> None:
    """The run asserts at every checkpoint that the ranks hold equal weights; here that would show if they did not."""
    path = make_config("student", teacher, WCORD)
    before = weights(
        run_config(path, "train.steps=1", "train.learning_rate=1e-12", "run=" + str(path.parent / "start"))
    )
    done = launch(["train", str(path), f"train.micro_batch={parts}", "train.learning_rate=0.01"])
    assert done.returncode == 0, done.stderr
    after = weights(Path(configs.load(path).run))
    assert any((after[key] - before[key]).abs().max() > 1e-3 for key in before)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="thread names are read from /proc")
def test_the_threads_of_the_process_group_end_with_the_training(make_config: Any, tmp_path: Path) -> None:
    """One that is alive when Python finalises may abort its process, and the launcher then kills the others."""
    program = tmp_path / "names_of_threads.py"
    program.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from pipeline import config\n"
        "from pipeline.train import train\n"
        "train(config.load(sys.argv[1]))\n"
        "print([name.read_text() for name in Path('/proc/self/task').glob('*/comm') if 'gloo' in name.read_text()])\n"
    )
    done = launch([str(make_config())], program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("[]") == 2


def test_a_batch_that_the_ranks_cannot_share_is_refused(make_config: Any) -> None:
    done = launch(["train", str(make_config()), "data.batch_size=15"])
    assert done.returncode != 0
    assert "data.batch_size: the global batch 15 must be divisible by the number of processes (2)" in done.stderr


def test_unsynchronised_copies_are_refused(make_config: Any) -> None:
    environment = {"WORLD_SIZE": "2", "RANK": "0", "ACCELERATE_USE_CPU": "false"}
    started = Started(["train", str(make_config())], environment=environment)
    assert started.wait() == 2
    assert "separate copies of the model" in started.output()[1]


def test_compression_and_a_teacher_of_other_size_are_the_same_program(make_config: Any) -> None:
    """RGB to RGB: the shipped config, on other data."""
    teacher = run_config(make_config("big"), "student={modality: rgb, encoder: {name: resnet, depth: 8, size: 32}}")
    overrides = [
        *("data.batch_size=16", "data.workers=0", "train.steps=3", "train.warmup=1"),
        *(f"teacher.run={teacher}", f"run={teacher.parent / 'small'}", "student.encoder.size=16"),
    ]
    shards = configs.load(make_config("big")).data.shards
    run = train(configs.load("compress", [*overrides, f"data.shards={shards}"]))
    assert load_network(run / "student").view.size == 16


def start_two_and_take_five_steps(arguments: list[str], *before: str) -> subprocess.Popen[str]:
    """Two processes that train, and go on; before: a command that starts the launcher."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "pipeline", "train"]
    started = subprocess.Popen(
        [*before, sys.executable, *launch, *arguments],
        cwd=ROOT,
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert started.stdout is not None
    for line in started.stdout:
        if line.startswith("step 5/"):
            break
    return started


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("timeout") is None, reason="needs GNU timeout")
def test_timeout_before_a_launcher_ends_with_a_checkpoint(make_config: Any) -> None:
    """It sends its signal twice, and the launcher hands it on to the ranks and waits for them."""
    path = make_config()
    settings = ["train.steps=999999", "train.checkpoint_every=999999", "train.log_every=1"]
    started = start_two_and_take_five_steps([str(path), *settings], "timeout", "-s", "TERM", "250")
    started.send_signal(signal.SIGTERM)  # which it passes on as it does its own
    said = started.communicate(timeout=100)[0]
    stopped = int(re.search(r"stopped at step (\d+) by a signal; continue with --resume", said)[1])  # type: ignore[index]
    checkpoints = list_checkpoints(Path(configs.load(path).run) / "checkpoints")
    assert [checkpoint.name for checkpoint in checkpoints] == [f"step_{stopped:08d}"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux to find the ranks")
def test_when_one_of_two_processes_is_killed_the_other_ends_with_a_reason(make_config: Any) -> None:
    settings = ["train.steps=9999", "train.log_every=1", "data.workers=1", "train.timeout=60"]
    started = start_two_and_take_five_steps([str(make_config()), *settings])
    ranks = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    os.kill(int(ranks[-1]), signal.SIGKILL)
    said = started.communicate(timeout=60)[0]
    assert started.returncode != 0
    assert "error: another process failed, or did not respond for 60 s (train.timeout)" in said
    assert "then run with --resume." in said
    assert sorted(re.findall(r"exitcode +: (-?\d+)", said)) == ["-9", "2"]  # before the launcher ends it
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1)])
def test_another_number_of_processes_goes_on(first: int, second: int, make_config: Any, teacher: str) -> None:
    """From the same weights, queue and optimiser; the composition of the batches alone is another one."""
    path = make_config("run", teacher, WCORD)
    run = path.with_suffix("")

    arguments = ["train", str(path), "train.log_every=1", "train.keep_checkpoints=9"]
    assert launch(arguments, processes=first).returncode == 0
    expected = [row["loss"] for row in lines(run)]
    shutil.rmtree(run / "student")
    for checkpoint in list_checkpoints(run / "checkpoints")[1:]:
        shutil.rmtree(checkpoint)
    done = launch([*arguments, "--resume"], processes=second)
    assert done.returncode == 0, done.stderr
    assert f"written by {first} processes, but {second} resume it" in done.stderr
    assert [row["step"] for row in lines(run)] == list(range(1, 13))
    found = [row["loss"] for row in lines(run)]
    assert found[:5] == expected[:5]
    assert found[5:] == pytest.approx(expected[5:], rel=0.25)
    assert (run / "student" / "network.json").exists()


def test_an_error_ends_a_run_with_workers_at_once(make_config: Any, tmp_path: Path) -> None:
    """Its loader's processes do not listen to the signal that Python ends them by."""
    (tmp_path / "breaks.py").write_text(
        "from losses import CrossEntropy\n"
        "class Breaks(CrossEntropy):\n"
        "    def forward(self, *features):\n"
        "        raise RuntimeError('broken')\n"
    )
    path = make_config("run", "", "  breaks:Breaks: {}")
    command = [sys.executable, "-m", "pipeline", "train", str(path), "data.workers=2"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "RuntimeError: broken" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("extra", [(), ("train.micro_batch=8",)])
def test_a_compiled_run_follows_the_other_one(
    make_config: Any, teacher: str, extra: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("train.log_every=1", "evaluation.every=12", *extra)
    monkeypatch.setitem(LocalTransport.__init__.__kwdefaults__, "iterations", 4)  # each of them is compiled
    plain = run_config(make_config("plain", teacher, WCORD), *settings)
    fast = run_config(make_config("fast", teacher, WCORD), *settings, "train.compile=true")
    expected = [row["loss"] for row in lines(plain) if "loss" in row]
    assert [row["loss"] for row in lines(fast) if "loss" in row] == pytest.approx(expected, rel=1e-3)
    assert weights(fast).keys() == weights(plain).keys()
    assert load_network(fast / "student").classes == ["disc", "square", "cross"]
    if extra:
        return
    shutil.rmtree(fast / "student")
    run_config(make_config("fast", teacher, WCORD), *settings, resume=True)  # its checkpoints are those of any run
    assert (fast / "student" / "network.json").exists()


def test_what_compiling_a_run_compiles(make_config: Any, teacher: str) -> None:
    """The iterations of every transport, inside of other losses too, where they are not faster as they are."""
    model = build_model(configs.load(make_config("fast", teacher, "  wcord: {dim: 8}\n  position_transport: {}")))
    plans = [m for m in model.losses.modules() if isinstance(m, (LocalTransport, PositionTransport))]
    for device, expected in (("cpu", False), ("cuda", True)):
        model.compile_parts(torch.device(device))
        assert [plan.compiled for plan in plans] == [expected] * 2


def test_compiled_networks_do_not_run_blocks_again(make_config: Any) -> None:
    with pytest.raises(UserError, match="compile and gradient_checkpointing cannot be combined"):
        configs.load(make_config(), ["train.compile=true", "train.gradient_checkpointing=true"])
