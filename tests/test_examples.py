"""The example packages, as a stranger would use them: installed beside the program, found by name, trained."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.train import train

ROOT = Path(__file__).parents[1]
THERMAL = ROOT / "examples" / "thermal"
SOURCE = THERMAL / "wcord_thermal.py"


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


def test_it_is_short_and_imports_public_names_only() -> None:
    lines = [line for line in SOURCE.read_text().splitlines() if line.strip()]
    assert len(lines) <= 60
    imports = [line for line in lines if re.match(r"from (modalities|losses|pipeline)", line)]
    assert imports
    assert not any(re.search(r"[ .]_", line) for line in imports)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


def test_the_page_about_modalities_shows_the_example_as_it_is() -> None:
    python, check = blocks("adding-a-modality.md", "python")
    assert python == SOURCE.read_text()
    assert re.search(r"check_modality\(\s*Thermal\(\)", check)
    assert blocks("adding-a-modality.md", "toml") == [(THERMAL / "pyproject.toml").read_text()]
    (commands,) = blocks("adding-a-modality.md", "bash")
    readme = (THERMAL / "README.md").read_text()
    assert all(f"    {command}\n" in readme for command in commands.splitlines())


def test_the_check_on_that_page_passes(installed: dict[str, str], tmp_path: Path) -> None:
    run(installed, tmp_path, str(THERMAL / "make_data.py"), "photos", "3")
    run(installed, tmp_path, "-c", blocks("adding-a-modality.md", "python")[1])


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
