"""What `wcord export` writes works without the program, says what it is, and can be pushed."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shapes_dataset import members
from test_onnx import pretrained, pretrained_audio

import pipeline
from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.common.owner import owned
from pipeline.data.manifest import load_dataset
from pipeline.export import bundle as module
from pipeline.export.bundle import export, push
from pipeline.export.model_card import Export, card
from pipeline.models.network import build_network, load_network, save_network
from pipeline.train import train

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.slow  # a run is trained and exported; the graphs have fast tests of their own


@pytest.fixture(scope="module")
def exported(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "out"
    export(runs / "student", out)
    return out


def test_files_are_labelled_alike_with_and_without_the_program(exported: Path, runs: Path, tmp_path: Path):
    files = []
    for index in range(4):
        files.append(tmp_path / f"{index}.png")
        files[-1].write_bytes(members(index)["depth.png"])
    wanted = [prediction.label for prediction in pipeline.load(runs / "student").predict(files)]
    assert [p.label for p in pipeline.load(exported).predict(files)] == wanted
    for script in ("predict.py", "load.py"):
        done = subprocess.run(
            [sys.executable, str(exported / script), *map(str, files)], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        bad = [sys.executable, str(exported / script), "nowhere.png", str(files[0])]
        told = subprocess.run(bad, cwd=tmp_path, capture_output=True, text=True)
        assert (told.returncode, told.stderr) == (1, "nowhere.png: No such file or directory\n")
        assert told.stdout == done.stdout.splitlines(keepends=True)[0]
        if script == "predict.py":
            assert [line.split("\t")[1] for line in done.stdout.splitlines()] == wanted


def test_the_card_says_what_it_is(exported: Path, runs: Path) -> None:
    text = (exported / "README.md").read_text()
    results = json.loads((runs / "student" / "results.json").read_text())
    for part in (
        'license_name: "not stated"',
        "**Teacher**: the run `teacher`",
        "shapes, 96 training samples",
        "3 classes",
        f"| top-1 | {results['student/top1']:.3f} |",
        "The outputs of ONNX (fp32) and PyTorch differ by at most",
        "| student, model.int8.onnx |",
        "## Limits",
    ):
        assert part in text
    assert str(exported.parent) not in text
    listed = {line.split("`")[1] for line in text.splitlines() if line.startswith("| `")}
    assert listed >= {path.name for path in exported.iterdir()} - {"README.md", "network.json"}


ELSEWHERE = """
import sys, pathlib
class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {absent} else self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Without, sys.meta_path)
sys.path.insert(0, {folder!r})
import numpy as np
from preprocess import ABOUT, batch, read
x = batch([read(pathlib.Path(file).read_bytes()) for file in sys.argv[2:]])
{code}
np.save(sys.argv[1], features)
"""
"""Files to features in a Python in which some packages are not installed, ours among them."""

BY_TRANSFORMERS = """
import torch, transformers
mean, std = (torch.tensor(ABOUT["normalised inside the network by"][name])[:, None, None] for name in ("mean", "std"))
encoder = transformers.AutoModel.from_pretrained({folder!r}, subfolder="encoder").eval()
with torch.no_grad():
    features = encoder(pixel_values=(torch.from_numpy(x["rgb"]) / 255 - mean) / std).pooler_output.numpy()
"""

BY_ONNX = """
import onnxruntime
session = onnxruntime.InferenceSession({folder!r} + "/model.onnx", providers=["CPUExecutionProvider"])
features = session.run(["features"], x)[0]
"""

OURS = ["pipeline", "modalities", "losses", "torchaudio"]  # which cannot be imported beside a torch for CPUs


def features_elsewhere(code: str, absent: list[str], folder: Path, files: list[Path]) -> np.ndarray:
    script = ELSEWHERE.format(code=code.format(folder=str(folder)), absent=absent, folder=str(folder))
    out = folder.parent / "features.npy"
    command = [sys.executable, "-I", "-c", script, str(out), *map(str, files)]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.load(out)


def test_a_transformers_encoder_is_read_by_transformers_and_by_onnx_alone(make_config: Any, tmp_path: Path) -> None:
    vit = pretrained("rgb", tmp_path / "vit")
    spec = f"student.encoder={{name: transformers, model: {vit}}}"
    run = train(configs.load(make_config(), ["student.modality=rgb", spec, "train.steps=3"]))
    done = export(run, tmp_path / "out")
    shutil.rmtree(vit)  # what was trained from is not needed
    assert done.notes == []
    files = [tmp_path / f"{index}.jpg" for index in range(3)]
    for index, file in enumerate(files):
        file.write_bytes(members(index)["rgb.jpg"])
    wanted = pipeline.load(run).embed(files)[1]
    assert np.ptp(wanted, 0).max() > 1e-2  # else any network would agree
    by_transformers = features_elsewhere(BY_TRANSFORMERS, OURS, done.folder, files)
    np.testing.assert_allclose(by_transformers, wanted, atol=1e-4)
    by_onnx = features_elsewhere(BY_ONNX, [*OURS, "torch", "transformers", "accelerate"], done.folder, files)
    np.testing.assert_allclose(by_onnx, wanted, atol=1e-4)
    with pytest.raises(AssertionError, match="No module named 'pipeline'"):
        features_elsewhere("import pipeline", OURS, done.folder, files)


@pytest.mark.parametrize("kind", ["wav2vec2", "whisper"])
def test_a_pretrained_audio_encoder_is_whole_or_left_out(kind: str, tmp_path: Path) -> None:
    pretrained_audio(kind, tmp_path / "model")
    spec = {"name": "transformers", "model": str(tmp_path / "model")}
    network = build_network({"name": "audio"}, spec, None, "student")
    done = Export(tmp_path / "out")
    save_network(network, done.folder)
    module._save_transformers(network, done)
    module._write_preprocessing(network, done)
    assert (done.folder / "encoder" / "model.safetensors").exists() == (kind == "wav2vec2")
    assert "encoder-decoder model" in done.notes[0] if kind == "whisper" else "AutoFeatureExtractor" in done.notes[0]
    assert not (done.folder / "preprocess.py").exists()


def test_a_network_that_is_more_than_tensors_goes_without_graphs(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise UserError("this network cannot be exported as a graph (it calls NumPy)")

    monkeypatch.setattr(module, "trace", refuse)
    done = export(runs / "student", tmp_path / "out")
    assert "model.pt2 and the ONNX files are missing: this network cannot be exported as a graph" in done.notes[0]
    assert done.notes[0] in (tmp_path / "out" / "README.md").read_text()
    assert not list((tmp_path / "out").glob("*.onnx"))
    assert not (tmp_path / "out" / "predict.py").exists()
    pipeline.load(tmp_path / "out")


def test_finished_work_is_not_written_over(exported: Path, runs: Path) -> None:
    with pytest.raises(UserError, match="already exists; choose a new folder"):
        export(runs / "student", exported)
    with pytest.raises(UserError, match="not a run folder"):
        export(exported, exported / "again")


def test_an_export_that_fails_leaves_nothing(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "model.onnx")

    monkeypatch.setattr(module, "_write_graphs", full)
    with pytest.raises(UserError, match=r"model\.onnx: No space left on device"):
        export(runs / "student", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_export_left_is_replaced_and_a_live_one_is_not(runs: Path, tmp_path: Path) -> None:
    left = tmp_path / ".out.part"
    left.mkdir()
    (left / "half.bin").touch()
    with owned(tmp_path / "out"), pytest.raises(UserError, match=f"process {os.getpid()} on host"):
        export(runs / "student", tmp_path / "out")
    assert (left / "half.bin").exists()
    export(runs / "student", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert not (tmp_path / "out" / "half.bin").exists()


def test_a_missing_package_names_the_extra(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"this requires onnxruntime: pip install 'wcord\[export\]'"):
        export(runs / "student", tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Hub:
    """Stands for `huggingface_hub.HfApi`."""

    calls: list[tuple[str, dict[str, Any]]] = []  # noqa: RUF012
    refuses = False

    def create_repo(self, repo_id: str, **keywords: Any) -> None:
        if self.refuses:
            raise OSError("401 Unauthorized")
        self.calls.append((repo_id, keywords))

    def upload_folder(self, *, repo_id: str, folder_path: Path) -> str:
        self.calls.append((repo_id, {"folder": folder_path}))
        return f"https://hub/{repo_id}"


def test_pushing_is_private_and_its_refusal_is_said(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert push(exported, "me/student") == "https://hub/me/student"
    assert Hub.calls == [("me/student", {"private": True, "exist_ok": True}), ("me/student", {"folder": exported})]
    monkeypatch.setattr(Hub, "refuses", True)
    with pytest.raises(UserError, match="--push me/student: 401 Unauthorized Log in with `hf auth login`"):
        push(exported, "me/student")


def test_nothing_in_the_card_is_html_or_a_link_of_the_data(runs: Path, tmp_path: Path) -> None:
    bad = "<img src=x onerror=alert(1)>[click](javascript:alert(2))`<b>`\x1b[2J\n# heading"
    config, network = configs.load(runs / "student.yaml"), load_network(runs / "student" / "student")
    network.classes = [bad, "a_b"]
    dataset = load_dataset(config.data.shards if isinstance(config.data.shards, str) else "")
    dataset = dataset.model_copy(update={"name": bad, "licence": bad, "split_rule": bad})
    done = Export(tmp_path, notes=[f"The teacher was not measured: {bad}"])
    text = card(runs / "student", config, network, dataset, done)
    body = text.partition("---\n\n")[2]
    assert "<" not in body
    assert re.search(r"(?<!\\)\[", body) is None
    assert "\x1b" not in text
    assert r"a\_b" in body
    assert [line for line in body.splitlines() if line.startswith("# ")] == ["# student"]
