"""What a run opens before its first step, and how often."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline import config as configs
from pipeline.evaluate import evaluate
from pipeline.train import train
from pipeline.train.cache_teacher import cache


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each manifest was read, by the name of its folder and its own."""
    found: Counter[str] = Counter()
    read_bytes = Path.read_bytes

    def counted(path: Path) -> bytes:
        if path.name in ("dataset.json", "first.cache.json"):
            found[f"{path.parent.name}/{path.name}"] += 1
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", counted)
    return found


def test_each_manifest_is_read_once(make_config: Any, shapes: Path, tmp_path: Path, reads: Counter[str]) -> None:
    own, other = (Path(shutil.copytree(shapes, tmp_path / name)) for name in ("own", "other"))
    teacher = train(configs.load(make_config("teacher", shards=own), ["student.modality=rgb", "train.steps=2"]))
    assert reads == {"own/dataset.json": 1}

    lines = f"teacher: {{run: {teacher}, cache: first, views: 1}}"
    path = make_config("student", lines, "  kd: {}\n  crd: {dim: 8}", shards=own)
    config = configs.load(path, [f"data.join=[{other}]", "evaluation.every=6", "train.steps=2"])
    reads.clear()
    cache(config)
    assert {name: count for name, count in reads.items() if "dataset" in name} == {
        "own/dataset.json": 1,
        "other/dataset.json": 1,
    }

    reads.clear()
    run = train(config)
    assert reads == {"own/dataset.json": 1, "other/dataset.json": 1, "own/first.cache.json": 1}

    reads.clear()
    evaluate(run)
    assert reads == {"own/dataset.json": 1, "other/dataset.json": 1}
