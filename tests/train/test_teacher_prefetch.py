"""A teacher that runs ahead gives what it would have given, in order, and a run with it can be resumed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from losses import Features
from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.data.source import open_split
from pipeline.data.stream import TrainStream
from pipeline.models.build import build_model
from pipeline.runs.checkpoint import list_checkpoints
from pipeline.train import train
from pipeline.train.teacher_prefetch import pays, teach_ahead

LOSSES = "  cross_entropy: {}\n  kd: {}\n  wcord: {dim: 8, queue: 32}"


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def path(make_config: Any) -> Path:
    teacher = train(configs.load(make_config("teacher"), ["student.modality=rgb", "train.steps=4"]))
    result: Path = make_config("student", f"teacher: {{run: {teacher}}}", LOSSES)
    return result


def test_the_features_are_those_of_the_teacher_asked_in_turn(path: Path) -> None:
    config, accelerator = configs.load(path), Accelerator(cpu=True)
    model = build_model(config)
    assert pays(model, accelerator)
    assert not pays(build_model(configs.load(path, ["teacher=null", "losses={cross_entropy: {}}"])), accelerator)
    stream = TrainStream(open_split(config.data.shards, "train", config.data.label), model.views, batch=16)
    ahead = teach_ahead(iter(stream), model, accelerator)  # type: ignore[arg-type]
    for plain, taught in islice(zip(stream, ahead, strict=True), 8):
        assert isinstance(plain, dict)
        assert plain["key"] == taught["key"]
        found, expected = taught["teacher"], model.teach(plain)
        assert isinstance(found, Features)
        assert not found.pooled.requires_grad
        torch.testing.assert_close(found.pooled, expected.pooled, rtol=1e-5, atol=1e-6)  # type: ignore[union-attr]
        assert model.teach(taught) is found
    ahead.close()  # type: ignore[attr-defined]
    assert torch.get_num_threads() == 2


def test_its_thread_ends_and_its_errors_arrive() -> None:
    def batches() -> Iterator[Any]:
        yield {"n": 1}
        raise UserError("the second batch cannot be read")

    class Teacher:
        def teach(self, batch: Any) -> int:
            return 10 * int(batch["n"])

    before = threading.active_count()
    ahead = teach_ahead(batches(), Teacher(), Accelerator(cpu=True))  # type: ignore[arg-type]
    assert next(ahead)["teacher"] == 10
    with pytest.raises(UserError, match="second batch"):
        next(ahead)
    assert threading.active_count() == before


def test_a_run_with_it_is_resumed_to_the_bit(path: Path) -> None:
    whole = train(configs.load(path, ["run=" + str(path.with_name("whole")), "train.keep_checkpoints=9"]))
    cut = whole.with_name("cut")
    shutil.copytree(whole, cut)
    for checkpoint in list_checkpoints(cut / "checkpoints"):
        if int(checkpoint.name[5:]) > 5:
            shutil.rmtree(checkpoint)
    shutil.rmtree(cut / "student")
    train(configs.load(path, [f"run={cut}", "train.keep_checkpoints=9"]), resume=True)
    one, two = (load_file(run / "student" / "model.safetensors") for run in (whole, cut))
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.slow
def test_the_loader_s_processes_end_in_peace(path: Path) -> None:
    """They are told to at the end; one that then fails would be reported as died."""
    code = (
        "import multiprocessing.process as p, sys\n"
        "from pipeline import config, train\n"
        "ended = []\n"
        "join = p.BaseProcess.join\n"
        "def watch(self, timeout=None):\n"
        "    join(self, timeout)\n"
        "    ended.append(self.exitcode)\n"
        "p.BaseProcess.join = watch\n"
        f"train.train(config.load({str(path)!r}, ['data.workers=2']))\n"
        "print('ended', ended)\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "ended [0, 0]" in done.stdout, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
