"""Whatever is wrong with the data or its readers: progress, or an error that names the cause, within a minute.

A rank that dies, and a link that is cut, are in test_train and benchmarks/two_hosts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from itertools import islice
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
import torch
from shapes_dataset import members, write_dataset

from modalities import RGB, Depth
from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.data.dataset import MANIFEST
from pipeline.data.manifest import load_dataset, write_shard
from pipeline.data.source import Policy, open_split
from pipeline.data.stream import TrainStream, loader
from pipeline.data.views import View
from pipeline.models.distillation import Distillation
from pipeline.train import train

ROOT = Path(__file__).parents[2]
VIEWS = {"teacher": View(RGB(), 24), "student": View(Depth(), 16)}
CPU = torch.device("cpu")
pytestmark = pytest.mark.timeout(60)


def batches(folder: Path, workers: int, policy: Policy | None = None, **settings: Any) -> Any:
    source = open_split(folder, "train", "label", policy=policy or Policy())
    return loader(TrainStream(source, VIEWS, **{"batch": 8, "shuffle": 10} | settings), workers, CPU)


def ruin(folder: Path, shard: int, field: str | None = None) -> None:
    """Pack a shard again with photos that are none, or every shard without a field."""
    about, start = load_dataset(folder), 0
    for place, old in enumerate(about.splits["train"]):
        keys = range(start, start + old.samples)
        start += old.samples
        if field is not None:
            samples = [(f"s{i:05d}", {k: v for k, v in members(i).items() if k != field}) for i in keys]
        elif place == shard:
            samples = [(f"s{i:05d}", members(i) | {"rgb.jpg": b"\xff\xd8 no photo"}) for i in keys]
        else:
            continue
        about.splits["train"][place] = write_shard(folder / old.file, samples)
    (folder / MANIFEST).write_text(about.model_dump_json())


def test_fewer_shards_than_readers_of_uneven_size(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data", {"train": [50, 3], "test": [2]})
    for rank in range(2):
        seen = list(islice(batches(folder, 3, ranks=2, rank=rank), 9))
        assert [len(batch["key"]) for batch in seen] == [8] * 9


def test_a_rank_without_data_is_told_before_anything_starts(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data", {"train": [10], "test": [2]})
    with pytest.raises(UserError, match=r"10 samples, fewer than the global batch of 16; lower data\.batch_size"):
        batches(folder, 0, ranks=2)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_of_which_every_sample_is_bad(tmp_path: Path, workers: int) -> None:
    folder = write_dataset(tmp_path / "data", {"train": [24, 24, 24], "test": [2]})
    ruin(folder, 1)
    with pytest.raises(UserError, match=r"train-000001\.tar.*rgb\.jpg"):
        list(islice(batches(folder, workers), 20))
    seen = list(islice(batches(folder, workers, Policy(max_faulty=0.5), shuffle=100), 20))
    assert len(seen) == 20
    lost = {(one.shard, one.place) for batch in seen for one in batch["skipped"]}
    assert len(lost) == 24


@pytest.mark.parametrize("unpaired", ["error", "skip"])
def test_a_field_that_no_sample_has(tmp_path: Path, unpaired: Any) -> None:
    folder = write_dataset(tmp_path / "data", {"train": [24, 24], "test": [2]})
    ruin(folder, 0, "depth.png")
    with pytest.raises(UserError, match=r"depth"):
        list(islice(batches(folder, 2, Policy(unpaired=unpaired)), 20))


def kill_children() -> None:
    """All of them: those of a test before may still be about to end."""
    for child in active_children():
        child.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_worker_that_the_system_kills(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data", {"train": [48, 48], "test": [2]})
    reader = batches(folder, 2)
    next(reader)
    kill_children()
    with pytest.raises(UserError, match=r"a loader process died: .*Lower data\.workers"):
        list(islice(reader, 50))


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_worker_that_the_system_kills_during_a_step(make_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not while the loop waits for it."""

    def step(model: Distillation, batch: Any, **keywords: Any) -> Any:
        kill_children()
        time.sleep(20)

    monkeypatch.setattr(Distillation, "forward", step)
    with pytest.raises(UserError, match=r"a loader process died: .*Lower data\.workers"):
        train(configs.load(make_config(), ["data.workers=2"]))


@pytest.mark.slow  # torch waits for the process again before it is given up
@pytest.mark.skipif(sys.platform != "linux", reason="needs loader processes that are forked")
def test_a_worker_that_waits_for_its_disk(make_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.shard_reader.verify_shard", lambda *about: time.sleep(60))
    with pytest.raises(
        UserError, match=r"no batch within 1 s \(train\.timeout\).*worker 0: /.*/train-00000\d\.tar\. Check"
    ):
        train(configs.load(make_config(), ["data.workers=1", "train.timeout=1"]))


@pytest.mark.slow
def test_a_rank_that_fails_ends_the_others(make_config: Any, tmp_path: Path) -> None:
    """One of two ranks cannot read its samples: the launcher ends both, and the cause is what is said."""
    folder = write_dataset(tmp_path / "data", {"train": [24, 24], "test": [4]})
    ruin(folder, 1)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "pipeline", "train"]
    done = subprocess.run(
        [sys.executable, *command, str(make_config(shards=folder)), "student.modality=rgb", "train.steps=99"],
        cwd=ROOT,
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "rgb.jpg" in done.stderr
