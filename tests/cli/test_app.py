"""The commands as people call them: what goes well, faulty data, a full disk (the rest is in test_wrong_inputs.py)."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from command_line import call
from shapes_dataset import members, write_dataset

import wcord
from pipeline.data.dataset import MANIFEST
from pipeline.data.manifest import load_dataset, write_shard

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "data", {"train": [20, 12], "test": [8]})


def rewrite(folder: Path, change: Callable[[str, dict[str, bytes]], dict[str, bytes]]) -> None:
    """Write the first training shard anew with some samples changed, as a careless tool would: sizes and hash fit."""
    samples = [(f"s{i:05d}", change(f"s{i:05d}", members(i))) for i in range(20)]
    shard = write_shard(folder / "train-000000.tar", samples)
    dataset = load_dataset(folder)
    dataset.splits["train"][0] = shard
    (folder / MANIFEST).write_text(dataset.model_dump_json())


def only(key: str, **changed: bytes | None) -> Callable[[str, dict[str, bytes]], dict[str, bytes]]:
    def change(name: str, sample: dict[str, bytes]) -> dict[str, bytes]:
        if name == key:
            sample |= {k.replace("__", "."): v for k, v in changed.items() if v is not None}
            for member in (k.replace("__", ".") for k, v in changed.items() if v is None):
                del sample[member]
        return sample

    return change


def png8() -> bytes:
    return cv2.imencode(".png", np.full((32, 32), 7, np.uint8))[1].tobytes()


def missing_shard(folder: Path) -> None:
    (folder / "train-000001.tar").unlink()


def cut_shard(folder: Path) -> None:
    path = folder / "train-000001.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def no_depth(folder: Path) -> None:
    rewrite(folder, only("s00004", depth__png=None))


def depth_of_8_bits(folder: Path) -> None:
    rewrite(folder, only("s00004", depth__png=png8()))


def label_out_of_range(folder: Path) -> None:
    rewrite(folder, only("s00004", label__txt=b"12"))


def no_training_samples(folder: Path) -> None:
    dataset = load_dataset(folder)
    dataset.splits["train"] = []
    (folder / MANIFEST).write_text(dataset.model_dump_json())


DATA_FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a missing shard": (missing_shard, "train-000001.tar: shard is missing. Restore it"),
    "a shard cut short": (cut_shard, "train-000001.tar: shard has"),
    "a photo without its depth": (no_depth, "train-000000.tar: sample s00004: has no depth.png"),
    "8-bit depth": (depth_of_8_bits, "convert it to a 16-bit PNG in millimetres. Run `wcord check` on the dataset."),
    "a label out of range": (label_out_of_range, "sample s00004: label `12` is not a class index in 0..2"),
    "no training samples": (no_training_samples, "split `train` has no samples"),
}


@pytest.mark.parametrize("fault", DATA_FAULTS)
def test_faulty_data_ends_training_with_cause_and_cure(
    fault: str, folder: Path, make_config: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, message = DATA_FAULTS[fault]
    damage(folder)
    config = make_config(shards=folder)
    assert call("train", config) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error
    assert not (config.with_suffix("") / "student").exists()


@pytest.mark.parametrize("fault", ["a missing shard", "a shard cut short", "a photo without its depth", "8-bit depth"])
def test_check_finds_the_same_faults(fault: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("check", folder) == 0
    assert "no faults" in capsys.readouterr().out
    DATA_FAULTS[fault][0](folder)
    assert call("check", folder) == 1
    assert "fault: train-00000" in capsys.readouterr().out


def test_pack_and_check_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(12):
        for member, data in members(index).items():
            if member in ("rgb.jpg", "depth.png"):
                path = (
                    tmp_path / "mine" / member.split(".")[0] / f"class{index % 3}" / f"{index}.{member.split('.')[1]}"
                )
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
    fields = ["--field", "rgb=rgb", "--field", "depth=depth", "--label-from", "parent", "--workers", "1"]
    fields += ["--intrinsics", "60,60,15.5,15.5", "--gravity", "-0.1,1,0"]
    call("pack", "folders", tmp_path / "mine", tmp_path / "packed", *fields)
    content = json.loads((tmp_path / "packed" / MANIFEST).read_text())
    assert content["classes"] == {"label": ["class0", "class1", "class2"]}
    with tarfile.open(tmp_path / "packed" / "test-000000.tar") as tar:
        name = next(name for name in tar.getnames() if name.endswith("meta.json"))
        meta = json.loads(tar.extractfile(name).read())  # type: ignore[union-attr]
    assert (meta["intrinsics"]["fx"], meta["gravity"]) == (60, [-0.1, 1, 0])
    assert call("check", tmp_path / "packed") == 0
    assert "12 samples" in capsys.readouterr().out


def test_a_full_folder_for_temporary_files_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    connect = sqlite3.connect

    def small(name: str, **options: Any) -> sqlite3.Connection:
        db = connect(name, **options)
        db.execute("PRAGMA max_page_count = 4")
        return db

    monkeypatch.setattr(sqlite3, "connect", small)
    (tmp_path / "photos").mkdir()
    for number in range(200):
        (tmp_path / "photos" / f"{number}.jpg").touch()
    assert call("pack", "folders", tmp_path, tmp_path / "packed", "--field", "rgb=photos") == 2
    assert "temporary files: database or disk is full. Set SQLITE_TMPDIR" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="needs the right to mount a small tmpfs")
def test_a_disk_that_fills_up_in_a_run_is_said_and_the_run_can_go_on(
    tmp_path: Path, folder: Path, make_config: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        own = [f"run={disk}/run", "student.encoder.width=8", "train.keep_checkpoints=9"]
        command = ["train", make_config(shards=folder), *own]
        assert call(*command, "train.steps=60", "train.checkpoint_every=2") == 2
        error = capsys.readouterr().err
        assert "could not be written" in error or "No space left" in error
        assert "--resume" in error
        whole = sorted(p.name for p in (disk / "run" / "checkpoints").glob("step_*"))
        assert whole
        for extra in whole[:-1]:
            shutil.rmtree(disk / "run" / "checkpoints" / extra)
        assert call(*command, "train.keep_checkpoints=1", "train.steps=20", "--resume") == 0
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    assert "done" in capsys.readouterr().out


COMPLETE = """
wcord --install-completion >/dev/null
. "$HOME/.bashrc"
complete -p wcord >/dev/null
for line in 'wcord ev' 'wcord pack hug' 'wcord train --over'; do
    COMP_WORDS=($line); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
    _wcord_completion wcord
    echo "${COMPREPLY[@]}"
done
"""


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="needs bash")
def test_a_shell_completes_commands_and_options(tmp_path: Path) -> None:
    wcord = tmp_path / "bin" / "wcord"  # under another name the completion would be of that
    wcord.parent.mkdir()
    wcord.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom pipeline.cli.app import main\nmain()"
    )
    wcord.chmod(0o755)
    own = {"HOME": str(tmp_path), "SHELL": "/bin/bash", "PATH": f"{wcord.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["/bin/bash", "-c", COMPLETE], env=os.environ | own, capture_output=True, text=True)
    assert done.stdout.split() == ["evaluate", "huggingface", "--overwrite"], done.stderr


def test_a_table_in_a_pipe_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ways = [f"retrieval/{way}/R@{k}" for way in ("student_to_teacher", "teacher_to_student") for k in (1, 5, 10)]
    for number, seed in enumerate((0, 1)):
        run = tmp_path / f"a_rather_long_name_of_a_method_s{seed}"
        run.mkdir()
        (run / "config.yaml").write_text(f"seed: {seed}\nrun: {run}\n")
        results = dict.fromkeys(ways, 0.25 + number / 10) | {"parameters/student": 279_175.0}
        (run / "results.json").write_text(json.dumps(results))
    assert call("compare", *map(str, sorted(tmp_path.iterdir())), "--out", str(tmp_path / "out")) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "a_rather_long_name_of_a_method" in line][:1]
    assert "279,175" in row
    assert row.count("30.0 ± 7.1") == len(ways)


def test_settings_without_a_config_are_refused_by_check(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("check", str(folder), "teacher.run=runs/teacher") == 2
    assert "teacher.run=runs/teacher: settings override a config; add --config" in capsys.readouterr().err


def test_evaluate_prints_an_interval_beside_its_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = {"retrieval/R@1": 0.25, "retrieval/R@1_low": 0.125, "retrieval/R@1_high": 0.5, "parameters/low": 12_000.0}
    monkeypatch.setattr("pipeline.evaluate.evaluate_run.evaluate", lambda *_: results)
    assert call("evaluate", "run") == 0
    assert [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()] == [
        ["retrieval/R@1", "0.25 [0.125, 0.5]"],
        ["parameters/low", "12,000"],
    ]


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    assert capsys.readouterr().out.strip() == wcord.__version__


def test_the_shipped_configs_and_benches_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("config", "list") == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"rgb_to_depth", "bench/cifar10_small", "bench/matrix"} <= set(names)
