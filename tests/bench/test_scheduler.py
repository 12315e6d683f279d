"""Where the cells of a matrix run."""

from __future__ import annotations

import pytest
import torch

from pipeline.bench.scheduler import places


@pytest.mark.parametrize(
    ("visible", "jobs", "expected"),
    [
        (None, None, ["0", "1"]),
        (None, 1, ["0"]),
        (None, 3, ["0", "1", "0"]),
        ("4,7", None, ["4", "7"]),
    ],
)
def test_one_cell_a_gpu(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, jobs: int | None, expected: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert places(jobs) == expected


def test_one_cell_a_core_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    assert places() == [None] * 3
