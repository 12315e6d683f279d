"""The examples of docs/your-own-loop.md run in order, in one program."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "your-own-loop.md"


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "example"}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, names)
    assert (tmp_path / "runs/plain/student/model.safetensors").is_file()
    assert [path.name for path in (tmp_path / "runs/half/checkpoints").iterdir()] == ["step_00000010"]
    assert 0 <= json.loads((tmp_path / "runs/half/results.json").read_text())["student/f1"] <= 1
