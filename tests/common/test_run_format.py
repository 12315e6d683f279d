"""Run folders of other versions: read as ever, or refused with a way out."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline import config as configs
from pipeline.common import run_format
from pipeline.common.errors import UserError
from pipeline.evaluate import evaluate
from pipeline.export.bundle import export
from pipeline.report.page import report
from pipeline.runs.reader import read_run
from pipeline.train import train

FIRST = Path(__file__).parent / "first_version"
"""`runs/` as the first version wrote it, before there were numbers: a depth student of an RGB teacher, tiny."""


@pytest.fixture
def first(tmp_path: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(FIRST, tmp_path / "runs")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shapes").symlink_to(shapes)
    monkeypatch.chdir(tmp_path)
    return Path("runs/student")


def test_runs_of_the_first_version_are_evaluated_reported_and_used(first: Path) -> None:
    before = read_run(first)
    assert before.notes == ()
    results = evaluate(first)
    assert results["student/top1"] == before.results["student/top1"]
    assert results["teacher/top1"] == before.results["teacher/top1"]
    assert "<h2>Curves</h2>" in report([first]).read_text()
    assert len(pipeline.load(first).predict("data/shapes")) == 126


def renumber(folder: Path, number: int) -> None:
    """As if another version had written it: with its number, and in each file a thing that this one does not know."""
    config = folder / "config.yaml"
    config.write_text(re.sub("format: .*", f"format: {number}\nnovelty: 3", config.read_text()))
    for path in [folder / "student" / "network.json", *folder.glob("checkpoints/*/checkpoint.json")]:
        about = json.loads(path.read_text())
        name = "version" if "version" in about else "format"
        assert about[name] == run_format.FORMAT
        path.write_text(json.dumps({**about, name: number, "modality": "novelty"}))


WAYS: dict[str, Callable[[Path], Any]] = {
    "evaluate": evaluate,
    "export": lambda run: export(run, run.parent / "out"),
    "report": lambda run: report([run]),
    "predict": pipeline.load,
    "train again": lambda run: configs.load(run / "config.yaml"),
    "resume": lambda run: train(configs.load(run.parent / "again.yaml", [f"run={run}", "train.steps=70"]), resume=True),
}


@pytest.fixture
def trained(runs: Path, tmp_path: Path) -> Path:
    shutil.copy(runs / "teacher" / "config.yaml", tmp_path / "again.yaml")
    return shutil.copytree(runs / "teacher", tmp_path / "run")


@pytest.mark.parametrize("way", WAYS)
def test_a_newer_run_is_refused_with_an_update(way: str, trained: Path) -> None:
    renumber(trained, 2)
    with pytest.raises(UserError, match=r"format 2 by a newer version of wcord.* pip install --upgrade wcord"):
        WAYS[way](trained)


@pytest.mark.parametrize("way", WAYS)
def test_an_older_run_that_cannot_be_read_is_refused_with_a_way_out(way: str, trained: Path) -> None:
    renumber(trained, 0)
    with pytest.raises(UserError, match=r"format 0 by an older version of wcord.*`wcord export`.* or train again"):
        WAYS[way](trained)
