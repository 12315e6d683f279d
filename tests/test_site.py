"""The site: every page is in it, and it builds without a warning."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from losses import LOSSES
from modalities import MODALITIES

ROOT = Path(__file__).parents[1]


def pages(entry: object) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in pages(part)]  # type: ignore[attr-defined]


def test_every_page_is_in_the_navigation() -> None:
    named = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(named) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


@pytest.mark.slow
def test_it_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings", reason="pip install 'wcord[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING -" not in done.stderr
    assert len(list((tmp_path / "site").rglob("index.html"))) == len(list((ROOT / "docs").glob("*.md")))


def test_the_api_page_has_every_loss_and_modality() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    wanted = [kind.__module__ for kind in LOSSES.values()]
    wanted += [f"{kind.__module__}.{kind.__name__}" for kind in MODALITIES.values()]
    assert [name for name in wanted if f"::: {name}\n" not in page] == []


def test_the_start_page_has_only_commands_that_the_readme_has() -> None:
    (block,) = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "index.md").read_text(), re.S)
    readme = (ROOT / "README.md").read_text()  # whose commands test_commands.py runs
    assert [line for line in block.splitlines() if line not in readme] == []


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda page: page.name)
def test_rows_of_tables_are_whole_lines(page: Path) -> None:
    """A row that is wrapped ends the table."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    assert [line for line in text.splitlines() if line.startswith("|") and not line.endswith("|")] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 120
