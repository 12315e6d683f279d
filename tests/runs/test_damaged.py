"""Damaged files of a run folder never end in a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.errors import UserError
from pipeline.runs import checkpoint
from pipeline.runs.checkpoint import keep_best
from pipeline.runs.reader import read_line, read_run

DEEP = b"[" * 100_000


@pytest.mark.parametrize("name", ["results.json", "config.yaml"])
def test_files_that_are_nested_too_deeply_are_damaged(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(DEEP if name == "results.json" else DEEP[:3000])
    with pytest.raises(UserError, match=name):
        read_run(tmp_path)
    assert read_line(b'{"step": ' + DEEP) is None


def kept(folder: Path, values: list[float], patch: pytest.MonkeyPatch) -> Any:
    patch.setattr(checkpoint, "save_network", lambda network, folder: folder.mkdir(exist_ok=True))
    for step, value in enumerate(values, 1):
        keep_best(None, folder, step, "top1", value)  # type: ignore[arg-type]
    return json.loads((folder / "best.json").read_text())


def test_nan_is_never_the_best_and_the_first_of_equals_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nan = float("nan")
    assert kept(tmp_path / "best", [nan, 0.0, 0.5, nan, 0.5, 0.4], monkeypatch) == {"step": 3, "top1": 0.5}


@pytest.mark.parametrize("content", [b"", b"[]", b'{"top1": NaN}', b'{"top1": []}', b'{"mIoU": 1}', b"\xff", DEEP])
def test_a_damaged_best_is_replaced(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "best.json").write_bytes(content)
    assert kept(tmp_path, [0.3], monkeypatch) == {"step": 1, "top1": 0.3}
