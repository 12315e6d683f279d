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


BEST = {"monitor": "top1", "mode": "max"}


def kept(folder: Path, values: list[float], patch: pytest.MonkeyPatch, metric: str = "top1") -> Any:
    patch.setattr(checkpoint, "save_network", lambda network, folder: folder.mkdir(exist_ok=True))
    for step, value in enumerate(values, 1):
        keep_best(None, folder, step, metric, value)  # type: ignore[arg-type]
    return json.loads((folder / "best.json").read_text())


def test_nan_is_never_the_best_and_the_first_of_equals_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nan = float("nan")
    assert kept(tmp_path / "best", [nan, 0.0, 0.5, nan, 0.5, 0.4], monkeypatch) == BEST | {"step": 3, "top1": 0.5}


@pytest.mark.parametrize("content", [b"", b"[]", b'{"top1": NaN}', b'{"top1": []}', b'{"a/b": 1}', b"\xff", DEEP])
def test_a_damaged_best_is_replaced(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "best.json").write_bytes(content)
    assert kept(tmp_path, [0.3], monkeypatch) == BEST | {"step": 1, "top1": 0.3}
    assert [path.name for path in tmp_path.parent.glob(f"{tmp_path.name}_*")] == []


def test_the_lowest_loss_is_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = kept(tmp_path / "best", [2.0, 1.0, 1.0, 1.5], monkeypatch, "loss")
    assert found == {"step": 2, "loss": 1.0, "monitor": "loss", "mode": "min"}


@pytest.mark.parametrize("earlier", ["loss", "R@1"])
def test_values_of_different_metrics_are_not_compared(
    earlier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "best"
    kept(folder, [0.9], monkeypatch, earlier)
    assert kept(folder, [0.1, 0.2], monkeypatch) == BEST | {"step": 2, "top1": 0.2}
    assert json.loads((tmp_path / f"best_{earlier}" / "best.json").read_text())[earlier] == 0.9
    assert f"was selected by {earlier}, and this run selects by top1; renamed to best_{earlier}/" in caplog.text


def test_a_best_of_version_0_1_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "best.json").write_text('{"step": 5, "top1": 0.5}')
    assert kept(tmp_path, [0.4], monkeypatch) == {"step": 5, "top1": 0.5}
