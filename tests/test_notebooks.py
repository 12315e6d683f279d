"""The notebooks of the examples: stored with clean outputs, and they run from top to bottom."""

from __future__ import annotations

import ast
import base64
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "notebooks"
NAMES = ["first_distillation", "losses_in_your_own_loop", "your_own_shards"]
RESULT = re.compile(r"\d\.\d{3}\b")
CHANCE = {"first_distillation": 1 / 16, "losses_in_your_own_loop": 1 / 10, "your_own_shards": 1 / 4}


def read(name: str) -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads((FOLDER / f"{name}.ipynb").read_text())
    return notebook


def source(cell: Any) -> str:
    return "".join(cell["source"])


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def printed(notebook: Any) -> list[str]:
    """What each code cell printed."""
    return ["".join("".join(out.get("text", "")) for out in cell["outputs"]) for cell in code_cells(notebook)]


def shows_something(code: str) -> bool:
    """Whether a cell prints, draws or runs a command."""
    commands = [line for line in code.splitlines() if line.startswith("!")]
    calls = [n.func for n in ast.walk(ast.parse(re.sub(r"(?m)^[!%].*$", "", code))) if isinstance(n, ast.Call)]
    names = {call.id if isinstance(call, ast.Name) else getattr(call, "attr", "") for call in calls}
    return bool(commands or names & {"print", "subplots"})


def accuracies(notebook: Any) -> list[float]:
    """The last numbers that a notebook printed."""
    last = [text for text in printed(notebook) if text][-1]
    return [float(found) for found in RESULT.findall(last)]


def check_results(name: str, notebook: Any) -> None:
    found = accuracies(notebook)
    assert len(found) >= 2, printed(notebook)[-1]
    assert all(CHANCE[name] < value <= 1 for value in found), found
    assert found[-1] > found[-2] + 0.05, found  # labels only, then with the teacher


def test_every_notebook_is_known() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_outputs_are_complete_and_clean(name: str) -> None:
    path, notebook = FOLDER / f"{name}.ipynb", read(name)
    assert path.stat().st_size < 400_000
    assert 10 <= len(notebook["cells"]) <= 15
    assert [cell["execution_count"] for cell in code_cells(notebook)] == [*range(1, 1 + len(code_cells(notebook)))]
    for cell in code_cells(notebook):
        outputs = cell["outputs"]
        assert outputs or not shows_something(source(cell)), source(cell)
        assert all(out["output_type"] != "error" and out.get("name") != "stderr" for out in outputs), outputs
        for out in outputs:
            image = out.get("data", {}).get("image/png", "")
            assert len(base64.b64decode("".join(image))) < 100_000
    text = "\n".join(printed(notebook))
    assert not re.search(r"warning|Traceback|\x1b", text, re.IGNORECASE), text
    everything = re.sub(r'"image/png": "[^"]*"', "", path.read_text())
    assert not re.search(r"(?<![\w.:/])/(home|root|tmp|work|usr|var|mnt|opt|Users)\b|[A-Z]:\\\\", everything)
    check_results(name, notebook)


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_shows_and_links_pages_that_exist(name: str) -> None:
    cells = read(name)["cells"]
    assert re.match(r"# .+\n\nThis notebook [^.]+\.", source(cells[0]))
    assert "# %pip install" in source(cells[1])
    links = [link for cell in cells for link in re.findall(r"\]\(([^)#]+)\)", source(cell))]
    assert links
    assert all((FOLDER / link).is_file() for link in links), links


def shortened(code: str) -> str:
    """A cell with a tenth of the steps: what long runs reach is stored in the notebook, and checked above."""
    code = re.sub(
        r"(steps: |epochs=|in range\()(20|30|\d{3})\b", lambda found: found[1] + str(int(found[2]) // 10), code
    )
    return re.sub(r"(warmup: )\d+", r"\g<1>1", code)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_from_top_to_bottom(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="pip install 'wcord[dev]'")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    commands, folder = tmp_path / "bin", tmp_path / "work"
    commands.mkdir()
    folder.mkdir()
    (commands / "wcord").write_text(f'#!/bin/sh\nexec {sys.executable} -m wcord "$@"\n')
    (commands / "wcord").chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(commands), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("WCORD_CACHE", str(tmp_path / "cache"))
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    for cell in code_cells(notebook):
        cell["outputs"], cell["execution_count"], cell["source"] = [], None, shortened(source(cell))
    notebook.metadata["kernelspec"]["name"] = "python3"
    client = nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(folder)}})
    client.execute()  # raises the error of a cell
    outputs = [out for cell in code_cells(notebook) for out in cell["outputs"]]
    assert [out for out in outputs if out["output_type"] == "error" or out.get("name") == "stderr"] == []
    assert len(accuracies(notebook)) >= 2
