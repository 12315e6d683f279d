"""The loader benchmark on small photos: it prints every row, and its figures add up."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from benchmarks import loader_peers, small_photos
from benchmarks.loader import on_small_photos
from benchmarks.loader_profile import BATCH, cpu_per_batch, photo_batches
from pipeline.data.source import open_split

LIBRARIES = Path(sys.prefix) / "libraries"
pytestmark = pytest.mark.slow


def test_stages_add_up_to_the_total(capsys: pytest.CaptureFixture[str]) -> None:
    on_small_photos(True, False, rounds=1, samples=640)
    rows = dict(re.findall(r"^(\S.*?)  +([\d.-]+)$", capsys.readouterr().out, re.MULTILINE))
    found = {name: float(value) for name, value in rows.items()}
    total = found.pop("total without measuring, 0 workers")
    apart = {name: found.pop(name) for name in list(found) if "1 worker" in name}
    assert len(found) == 9
    assert min(found.values()) > 0
    assert 0.8 * total < sum(found.values()) < 2 * total  # the clock itself takes time
    assert len(apart) == 2


@pytest.mark.skipif(not (LIBRARIES / "timm").is_dir(), reason=f"timm is not in {LIBRARIES}; run `make setup`")
def test_every_peer_is_compared(capsys: pytest.CaptureFixture[str]) -> None:
    on_small_photos(False, True, rounds=1, samples=256)
    printed = capsys.readouterr().out
    for name in loader_peers.PEERS:
        assert len(re.findall(rf"^{name} +[02] +[\d.]+ +[\d.]+ +[\d.]+ ", printed, re.MULTILINE)) == 2
    assert len(re.findall(r"CPU ms a step, .* for data", printed)) == 6
    assert len(re.findall(r"plain loop / wcord.*: [\d.]+ ", printed)) == 4


def test_the_time_of_loader_processes_counts(tmp_path: Path) -> None:
    folder = small_photos.write(tmp_path / "data", 1280)
    steps = open_split(folder, "train", "label").samples // BATCH
    alone, apart = (cpu_per_batch(photo_batches(folder, workers), 3 * steps) for workers in (0, 2))
    assert apart > 0.8 * alone
