"""What `wcord export` writes works without the program, says what it is, and can be pushed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from shapes_dataset import members
from test_graph import pretrained, pretrained_audio

import pipeline
from modalities.transformers_loader import import_transformers
from pipeline import config as configs
from pipeline import export as module
from pipeline.card import Export
from pipeline.errors import UserError
from pipeline.export import export, push
from pipeline.network import build_network, save_network
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
        "agrees with PyTorch to",
        "| student, model.int8.onnx |",
        "## Limits",
    ):
        assert part in text
    assert str(exported.parent) not in text
    listed = {line.split("`")[1] for line in text.splitlines() if line.startswith("| `")}
    assert listed >= {path.name for path in exported.iterdir()} - {"README.md", "network.json"}


def test_a_transformers_encoder_is_read_by_transformers(make_config: Any, tmp_path: Path) -> None:
    vit = pretrained("rgb", tmp_path / "vit")
    spec = f"student.encoder={{name: transformers, model: {vit}}}"
    run = train(configs.load(make_config(), ["student.modality=rgb", spec, "train.steps=3"]))
    done = export(run, tmp_path / "out")
    assert (tmp_path / "out" / "model.onnx").is_file()
    assert done.notes == []
    again = import_transformers().AutoModel.from_pretrained(tmp_path / "out", subfolder="encoder").eval()
    own = pipeline.load(run).network.encoder.cpu()
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        found = again(pixel_values=own.normalise(x)).pooler_output
        torch.testing.assert_close(found, own(x).pooled)


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
    assert "half a model" in done.notes[0] if kind == "whisper" else "AutoFeatureExtractor" in done.notes[0]
    assert not (done.folder / "preprocess.py").exists()


def test_a_network_that_is_more_than_tensors_goes_without_graphs(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise UserError("this network cannot be written as a graph (it calls NumPy)")

    monkeypatch.setattr(module, "trace", refuse)
    done = export(runs / "student", tmp_path / "out")
    assert "No model.pt2 and no ONNX: this network cannot be written as a graph" in done.notes[0]
    assert done.notes[0] in (tmp_path / "out" / "README.md").read_text()
    assert not list((tmp_path / "out").glob("*.onnx"))
    assert not (tmp_path / "out" / "predict.py").exists()
    pipeline.load(tmp_path / "out")


def test_finished_work_is_not_written_over(exported: Path, runs: Path) -> None:
    with pytest.raises(UserError, match="exists already; give a new folder"):
        export(runs / "student", exported)
    with pytest.raises(UserError, match="not a run folder"):
        export(exported, exported / "again")


def test_a_missing_package_names_the_extra(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnxruntime is needed for this: pip install 'wcord\[export\]'"):
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
    with pytest.raises(UserError, match="--push me/student: 401 Unauthorized Log in by `hf auth login`"):
        push(exported, "me/student")
