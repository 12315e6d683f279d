"""The example packages, as a stranger would use them: installed beside the program, found by name, trained."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import modalities
from modalities.testing import check_modality
from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.train import train

ROOT = Path(__file__).parents[1]
THERMAL, EEG = ROOT / "examples" / "thermal", ROOT / "examples" / "eeg"
SOURCE = THERMAL / "wcord_thermal.py"
PAGE = "adding-a-modality.md"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which the example is installed; nothing else is touched."""
    begun, target = time.perf_counter(), tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*pip, str(target), str(THERMAL)], check=True, timeout=120)
    took = time.perf_counter() - begun
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(target), str(ROOT)]), "INSTALLED_IN": f"{took:.1f}"}


def run(environment: dict[str, str], folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_modality_from_outside_is_trained_by_its_name(
    installed: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = time.perf_counter()
    run(installed, tmp_path, str(THERMAL / "make_data.py"), "photos", "160")
    fields = ("--field", "rgb=photo/{id}.png", "--field", "thermal=thermal/{id}.png", "--label", "class")
    run(installed, tmp_path, "-m", "pipeline", "pack", "manifest", "photos/index.csv", "data/thermal", *fields)
    run(installed, tmp_path, "-m", "pipeline", "check", "data/thermal")
    steps = ("train.steps=30", "data.batch_size=32")
    run(installed, tmp_path, "-m", "pipeline", "train", str(THERMAL / "photo.yaml"), *steps)
    run(installed, tmp_path, "-m", "pipeline", "train", str(THERMAL / "thermal.yaml"), *steps)
    results = run(installed, tmp_path, "-m", "pipeline", "evaluate", "runs/thermal")
    took = time.perf_counter() - begun
    with capsys.disabled():  # docs/adding-a-modality.md gives these figures
        print(f"\npip install: {installed['INSTALLED_IN']} s; from there to a trained, evaluated student: {took:.0f} s")
    assert float(re.search(r"student/probe +([\d.]+)", results)[1]) > 0.4  # type: ignore[index] - chance is 0.25
    run(installed, tmp_path, "-m", "pipeline", "report", "runs/thermal")


def test_the_modality_keeps_the_contract(installed: dict[str, str], tmp_path: Path) -> None:
    for number, size in enumerate([(40, 50), (64, 64)]):
        kelvin = np.random.default_rng(number).uniform(280, 320, size)
        cv2.imwrite(str(tmp_path / f"{number}.png"), (kelvin * 100).astype(np.uint16))
    code = (
        "from pathlib import Path; from modalities import get; from modalities.testing import check_modality; "
        "check_modality(get('thermal')(), [p.read_bytes() for p in Path().glob('*.png')], specs=[{'name': 'cnn5'}])"
    )
    run(installed, tmp_path, "-c", code)


@pytest.mark.parametrize(("source", "most"), [(SOURCE, 60), (EEG / "wcord_eeg" / "__init__.py", 100)])
def test_it_is_short_and_imports_public_names_only(source: Path, most: int) -> None:
    lines = [line for line in source.read_text().splitlines() if line.strip()]
    assert len(lines) <= most
    imports = [line for line in lines if re.match(r"from (modalities|losses|pipeline)", line)]
    assert imports
    assert not any(re.search(r"[ .]_", line) for line in imports)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


def test_the_page_about_modalities_shows_the_examples_as_they_are() -> None:
    thermal, check, eeg, script = blocks(PAGE, "python")
    assert thermal == SOURCE.read_text()
    assert re.search(r"check_modality\(\s*Thermal\(\)", check)
    assert (eeg, script) == tuple((EEG / "wcord_eeg" / name).read_text() for name in ("__init__.py", "preprocess.py"))
    assert blocks(PAGE, "toml") == [(THERMAL / "pyproject.toml").read_text()]
    assert blocks(PAGE, "yaml") == [(EEG / "eeg.yaml").read_text()]
    for folder, commands in zip((THERMAL, EEG), blocks(PAGE, "bash"), strict=True):
        readme = (folder / "README.md").read_text()
        assert all(f"    {command}\n" in readme for command in commands.splitlines())


def test_the_check_on_that_page_passes(installed: dict[str, str], tmp_path: Path) -> None:
    run(installed, tmp_path, str(THERMAL / "make_data.py"), "photos", "3")
    run(installed, tmp_path, "-c", blocks(PAGE, "python")[1])


def series(*lengths: int) -> list[bytes]:
    """`.npy` files of EEG, of so many time steps each."""
    files = [io.BytesIO() for _ in lengths]
    for file, length in zip(files, lengths, strict=True):
        np.save(file, np.random.default_rng(length).normal(3, 20, (8, length)))
    return [file.getvalue() for file in files]


def test_the_series_keep_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EEG)
    adapter = modalities.get("wcord_eeg:EEG")()
    check_modality(adapter, series(384, 100, 256), specs=[{"name": "series_cnn", "width": 4}])
    for data, message in [
        (series(384)[0][:-1], r"not a complete \.npy file"),
        (np.lib.format.magic(1, 0), r"not a complete \.npy file"),
        (array(np.zeros((4, 9))), r"float64 \[4, 9\]; expected numbers \[8 channels, time\]"),
        (array(np.full((8, 9), np.nan)), "NaN or infinite readings"),
    ]:
        with pytest.raises(ValueError, match=message):
            adapter.decode(data, {})


def array(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


ELSEWHERE = """
import json, runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
sys.path.insert(0, {folder!r})
sys.argv = ["predict.py", {file!r}]
own = runpy.run_path({folder!r} + "/predict.py", run_name="__main__")
print(json.dumps([own["features"][0].tolist(), own["logits"][0][0].tolist()]))
"""
"""`predict.py` in a Python with nothing but onnxruntime and numpy: what it prints, and the outputs that it got."""

HERE = """
import json, sys, wcord
student = wcord.load("runs/eeg")
((_, out),) = student.run(sys.argv[1])
(found,) = student.predict(sys.argv[1])
print(json.dumps([out.pooled[0].tolist(), out.logits[0].tolist(), found.label, found.probabilities[found.label]]))
"""


@pytest.fixture
def terminal(tmp_path: Path) -> dict[str, str]:
    """The environment of somebody who has installed wcord and nothing else; packages are installed in a folder."""
    (tmp_path / "bin").mkdir()
    for name, arguments in (("python", ""), ("pip", "-m pip"), ("wcord", "-m wcord")):
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\nexec {sys.executable} {arguments} "$@"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    site = tmp_path / "site"
    pip = {"PIP_TARGET": str(site), "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_QUIET": "1"}
    path = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
    return os.environ | pip | {"PATH": path, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}


@pytest.mark.slow
def test_a_series_goes_from_data_to_onnx_by_the_commands_of_the_page(
    terminal: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    folder, begun = tmp_path / "eeg", time.perf_counter()
    shutil.copytree(EEG, folder, ignore=shutil.ignore_patterns("__pycache__"))
    commands = ["bash", "-euxc", blocks(PAGE, "bash")[1]]
    done = subprocess.run(commands, cwd=folder, env=terminal, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with capsys.disabled():  # docs/adding-a-modality.md gives this figure
        print(f"\nEEG, from generating the data to a prediction with ONNX: {time.perf_counter() - begun:.0f} s")
    assert float(re.search(r"student/top1 +([\d.]+)", done.stdout)[1]) > 0.5  # type: ignore[index] - chance is 0.25
    shutil.rmtree(folder / "wcord_eeg")
    file = "trials/eeg/0001.npy"
    *wanted, own_label, own_probability = json.loads(run(terminal, folder, "-c", HERE, file))
    absent = ["wcord", "pipeline", "modalities", "losses", "wcord_eeg", "torch", "cv2", "transformers"]
    code = ELSEWHERE.format(absent=absent, folder=str(folder / "exported"), file=file)
    line, outputs = run(terminal, folder, "-I", "-c", code).splitlines()
    for found, value in zip(json.loads(outputs), wanted, strict=True):
        np.testing.assert_allclose(found, value, atol=1e-4)
    path, found_label, probability = line.split("\t")
    assert (path, found_label) == (file, own_label)
    assert abs(float(probability) - own_probability) < 1e-4
    assert done.stdout.splitlines()[-1].startswith("trials/eeg/0000.npy\t")  # the last command of the page


def test_the_loss_on_its_page_trains(make_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, calls = blocks("adding-a-loss.md", "python")
    (losses,) = blocks("adding-a-loss.md", "yaml")
    (tmp_path / "whitened.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    exec(compile(calls, "adding-a-loss.md", "exec"), {})
    teacher = train(configs.load(make_config("teacher"), ["student.modality=rgb", "train.steps=4"]))
    config = make_config("student", f"teacher: {{run: {teacher}}}", losses.removeprefix("losses:\n"))
    student = train(configs.load(config))
    lines = [json.loads(line) for line in (student / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss/whitened:Whitened"] < lines[0]["loss/whitened:Whitened"]
    assert "whitened:Whitened/error" in lines[-1]
    with pytest.raises(UserError, match="floor: must be above 0, got -1"):
        configs.load(config, ["losses[whitened:Whitened].floor=-1"])
