"""Exported students by their name on the Hugging Face Hub, from a stand-in of the Hub."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import call
from hub import COMMIT, ModelHub, hub, use_endpoint
from huggingface_hub import constants
from shapes_dataset import members
from store import Store

import pipeline
from modalities.transformers_loader import import_transformers
from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.data import hub as hub_module
from pipeline.models import hub_student
from pipeline.models.network import build_network, load_network, save_network
from pipeline.train import train

NAME = "me/student"
UNSAFE = ("pytorch_model.bin", "run.py", "encoder/modeling.py", "encoder/model.safetensors", "0/notes.pkl", "load.py")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    hub_module.reach_hub.cache_clear()


@pytest.fixture
def running(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Store]]:
    """A hub whose model `me/student` is the student of a run, next to files that are never read."""
    shutil.copytree(runs / "student" / "student", tmp_path / "repository")
    for name in UNSAFE:
        (tmp_path / "repository" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "repository" / name).write_bytes(b"unsafe")
    with hub(tmp_path / "repository", monkeypatch, ModelHub) as store:
        yield store


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub that accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        use_endpoint(f"http://127.0.0.1:{server.getsockname()[1]}", monkeypatch)
        yield


def test_it_predicts_as_the_local_folder(running: type[Store], runs: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "0.png").write_bytes(members(0)["depth.png"])
    own, found = (pipeline.load(run).embed("0.png")[1] for run in (runs / "student", NAME))
    np.testing.assert_array_equal(own, found)
    assert call("predict", runs / "student", "0.png") == 0
    wanted = capsys.readouterr().out
    assert call("predict", f"{NAME}@{COMMIT}", "0.png") == 0
    assert capsys.readouterr().out == wanted


def test_only_the_files_that_are_read_are_downloaded(running: type[Store]) -> None:
    folder = hub_student.student_folder(NAME)
    held = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert held == {"network.json", "model.safetensors", "space.safetensors"}
    assert not any(running.served[name] for name in UNSAFE)


def test_all_parts_of_a_joint_student_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = import_transformers()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    vit = transformers.ViTConfig(**sizes, patch_size=8, image_size=32)
    transformers.ViTModel(vit).save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    encoders = [{"name": "cnn5", "width": 4, "size": 16}, {"name": "transformers", "model": str(tmp_path / "vit")}]
    joint = build_network([{"name": "rgb"}, {"name": "rgb"}], encoders, ["a", "b"], "student")
    save_network(joint, tmp_path / "repository")
    with hub(tmp_path / "repository", monkeypatch, ModelHub):
        found = load_network(hub_student.student_folder(NAME)).state_dict()
    assert all((found[name] == value).all() for name, value in joint.state_dict().items())


def test_a_teacher_by_name_trains_and_its_commit_is_recorded(
    running: type[Store], make_config: Callable[..., Path], tmp_path: Path
) -> None:
    config = configs.load(make_config(teacher=f"teacher: {{run: {NAME}}}", losses="  rkd: {}"), ["train.steps=2"])
    run = train(config)
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert written["teacher"]["run"] == f"{NAME}@{COMMIT}"
    asked = running.served["all"]
    (tmp_path / "run" / "student" / "network.json").unlink()
    train(configs.load(run / "config.yaml"), resume=True)  # reads the teacher of this commit from the cache
    assert running.served["all"] == asked


def test_without_a_network_the_cached_student_is_used(
    running: type[Store], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = hub_student.student_folder(NAME)
    asked = running.served["all"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub_student.student_folder(NAME) == folder
    assert running.served["all"] == asked
    assert f"the Hub is unreachable; using the cached commit {COMMIT}" in caplog.text
    (folder / "network.json").unlink()  # as after an interrupted download
    with pytest.raises(UserError, match=r"me/student: there is no such folder, and HF_HUB_OFFLINE is set"):
        hub_student.student_folder(NAME)


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_one_line_within_5_s(unreachable: None, tmp_path: Path, capsys) -> None:
    start = time.monotonic()
    assert call("predict", NAME, tmp_path) == 2
    assert time.monotonic() - start < 5
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: me/student: there is no such folder, and the Hugging Face Hub at http://127.0.0.1:")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("me/nothing", "me/nothing: there is no such folder, and the Hub has no repository me/nothing that you may"),
        (f"{NAME}@v2", "me/student on the Hub has no revision v2"),
        (NAME, r"me/student on the Hub is no exported student: it has no network\.json"),
    ],
)
def test_what_the_hub_does_not_have_is_named(running: type[Store], name: str, message: str) -> None:
    (running.folder / "network.json").unlink()
    with pytest.raises(UserError, match=message):
        pipeline.load(name)


@pytest.mark.parametrize("part", ["", "encoder"])
def test_functions_that_a_description_names_are_not_called(part: str, running: type[Store], tmp_path: Path) -> None:
    encoder = {"name": "module", "factory": "os:system", "keywords": {"command": f"touch {tmp_path / 'called'}"}}
    bad = {"version": 1, "modality": {"name": "rgb"}, "encoder": encoder, "classes": None}
    path = running.folder / part / "network.json"
    if part:  # as a part of a joint network
        (running.folder / "network.json").write_text('{"version": 1, "networks": ["./encoder"], "classes": null}')
    path.write_text(json.dumps(bad))
    with pytest.raises(UserError, match=r"me/student: its network\.json imports os:system; .*hf download me/student"):
        pipeline.load(NAME)
    assert not (tmp_path / "called").exists()
    with pytest.raises(UserError):  # whoever passes the folder has read it, so its function is called
        pipeline.load(tmp_path / "repository")
    assert (tmp_path / "called").exists()


@pytest.mark.parametrize("path", ["runs/x", "./me/x", "../me/x", "~/x", "/me/x", "me/x/y", "x", "here/x", Path("me/x")])
def test_paths_are_never_looked_up(running: type[Store], path: str | Path, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    with pytest.raises(UserError, match=r"student/network\.json: not found\. Use the run folder"):
        pipeline.load(path)
    assert not running.served
