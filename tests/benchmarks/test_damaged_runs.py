"""No command ends in a traceback on a run folder of which one file is damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.damaged_runs import COMMANDS, USED, Case, attempt, cases, example_of, files, tried
from pipeline import config as configs
from pipeline.cli.app import main
from pipeline.common.errors import UserError
from pipeline.inference.search import search
from pipeline.models.network import load_network
from pipeline.runs.reader import read_results

QUICK = tuple(command for command in COMMANDS if command != "evaluate")


@pytest.fixture(scope="module")
def finished(runs: Path, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An evaluated run with an index, if faiss is there, and a file to ask about."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(runs / "student", folder / "student")
    try:
        import faiss  # noqa: F401
    except ImportError:
        pass
    else:
        with pytest.raises(SystemExit):
            main(["embed", str(folder / "student"), str(shapes), "--index", str(folder / "student" / "index")])
    return folder / "student", example_of(folder)


def tracebacks(finished: tuple[Path, Path], folder: Path, number: int, seed: int, commands: tuple[str, ...]) -> str:
    run, example = finished
    found = [text for case in islice(cases(run, seed), number) for text in tried(run, case, folder, example, commands)]
    return "\n".join(found)


def test_damaged_runs_end_in_messages(finished: tuple[Path, Path], tmp_path: Path) -> None:
    assert tracebacks(finished, tmp_path, 4, 1, QUICK) == ""


@pytest.mark.slow
def test_more_damaged_runs_end_in_messages(finished: tuple[Path, Path], tmp_path: Path) -> None:
    assert tracebacks(finished, tmp_path, 40, 2, QUICK) == ""
    assert tracebacks(finished, tmp_path, 8, 3, ("evaluate", "export")) == ""


def test_an_undamaged_run_passes_and_a_bug_is_counted(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, example = finished
    assert {name for name in files(run) if name in USED} >= {"config.yaml", "results.json", "student/network.json"}
    assert attempt("predict", run, example) is None
    monkeypatch.setattr("pipeline.models.network.load_file", lambda path: 1 / 0)
    case = Case("student/space.safetensors", "none", lambda path: None)
    (found,) = tried(run, case, tmp_path, example, ("serve",))
    assert "ZeroDivisionError" in found


DESCRIPTIONS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "names itself": (lambda about: {"networks": ["./"], "classes": None}, "is the joint network itself"),
    "an absolute part": (lambda about: {"networks": ["/etc"], "classes": None}, "is not a relative path such as"),
    "a part elsewhere": (lambda about: {"networks": ["./../.."], "classes": None}, "is outside the folder"),
    "an absolute path": (lambda about: about | {"encoder": {"name": "vit", "model": "/etc"}}, "an absolute path"),
    "40 GB": (lambda about: about | {"encoder": about["encoder"] | {"width": 20_000}}, "far more memory than its"),
    "10^12 channels": (lambda about: about | {"encoder": about["encoder"] | {"width": 10**12}}, "damaged"),
    "10^12 pixels": (
        lambda about: about | {"encoder": about["encoder"] | {"size": 10**12}},
        "invalid input size: 10000000000",
    ),
    "no classes": (lambda about: about | {"classes": {"a": 1}}, "not a list of names"),
    "a list": (lambda about: [about], "not a JSON object"),
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_descriptions_of_no_network_are_refused_before_they_are_built(name: str, runs: Path, tmp_path: Path) -> None:
    change, message = DESCRIPTIONS[name]
    shutil.copytree(runs / "student" / "student", tmp_path / "student")
    path = tmp_path / "student" / "network.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UserError, match=r"network\.json: damaged .*Train again, or restore the folder") as error:
        load_network(tmp_path / "student")
    assert message in str(error.value)


def test_an_index_of_another_run_is_named(finished: tuple[Path, Path], tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss")
    run, example = finished
    shutil.copytree(run / "index", tmp_path / "index")
    keys = json.loads((tmp_path / "index" / "index.json").read_text())["keys"]
    other = faiss.IndexFlatIP(3)
    other.add(np.zeros((len(keys), 3), np.float32))
    faiss.write_index(other, str(tmp_path / "index" / "vectors.faiss"))
    with pytest.raises(
        UserError, match=r"contains 3-dimensional vectors, but the run produces \d+-.* Rebuild the index: `wcord embed"
    ):
        search(tmp_path / "index", "depth", str(example), 3)


@pytest.mark.parametrize("value", ['"a\\0b"', '"\\uD800"'])
def test_text_that_is_no_path_is_refused_in_a_config(value: str, runs: Path, tmp_path: Path) -> None:
    text = (runs / "student.yaml").read_text()
    (tmp_path / "a.yaml").write_text(f"run: {value}\n" + text.partition("\n")[2])
    with pytest.raises(UserError, match=r"run: must be a string without null characters .*a\.yaml line 1"):
        configs.load(tmp_path / "a.yaml")


def test_results_that_cannot_be_are_skipped_and_named(tmp_path: Path) -> None:
    values = {"student/top1": 1.5, "student/knn": 0.5, "samples/test": -1, "loss": 10**400, "parameters/student": None}
    (tmp_path / "results.json").write_text(json.dumps(values))
    notes: list[str] = []
    assert read_results(tmp_path / "results.json", notes) == {"student/knn": 0.5}
    assert notes == [
        "results.json: skipped values that are not finite numbers or out of range: loss, parameters/student, "
        "samples/test, student/top1."
    ]
