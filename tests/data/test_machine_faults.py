"""A full disk, a permission, a broken device: they end a run whatever `max_faulty` says, and are no faulty samples."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from shapes_dataset import write_dataset

from modalities import Depth
from pipeline.common.disk_errors import MACHINE
from pipeline.common.errors import UserError
from pipeline.data.augmentation import Augmentation
from pipeline.data.join import Join
from pipeline.data.manifest import load_dataset
from pipeline.data.skipped import SampleError, Skipped
from pipeline.data.source import Policy, Source, open_split
from pipeline.data.stream import EvalStream, TrainStream, loader
from pipeline.data.views import View
from pipeline.inference.inputs import look_at_file
from pipeline.packing.check import check
from pipeline.packing.recipes.plan import refusal

VIEWS = {"student": View(Depth(jitter=0.0, dropout=0.0), 16)}
CPU = torch.device("cpu")
NUMBERS = [errno.ENOSPC, errno.EMFILE, errno.EACCES, errno.EIO]


class Failing:
    """A file of which the first bytes can be read."""

    def __init__(self, file: Any, number: int) -> None:
        self.file, self.number = file, number

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> Failing:
        return self

    def __exit__(self, *about: object) -> None:
        self.file.close()

    def read(self, size: int = -1) -> bytes:
        if self.file.tell() > 20_000:
            raise OSError(self.number, "it failed")
        data: bytes = self.file.read(size)
        return data


def break_file(patch: pytest.MonkeyPatch, name: str, number: int, reading: bool) -> None:
    """Opening the file fails, or reading it after some samples."""
    opened = Path.open

    def fail(self: Path, *args: Any, **keywords: Any) -> Any:
        if self.name != name:
            return opened(self, *args, **keywords)
        if not reading:
            raise OSError(number, "it failed", str(self))
        return Failing(opened(self, *args, **keywords), number)

    patch.setattr(Path, "open", fail)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), {"train": [16, 16], "test": [8]})


def source(folder: Path) -> Source:
    return open_split(folder, "train", "label", policy=Policy(max_faulty=0.9))


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("reading", [False, True])
@pytest.mark.parametrize("kind", [TrainStream, EvalStream])
def test_the_run_ends(kind: Any, reading: bool, number: int, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = source(data)
    break_file(monkeypatch, "train-000001.tar", number, reading)
    stream = kind(split, VIEWS, Augmentation(), batch=8) if kind is TrainStream else kind(split, VIEWS, batch=8)
    with pytest.raises(UserError) as error:
        for _ in zip(range(8), loader(stream, 0, CPU), strict=False):
            pass
    assert not isinstance(error.value, SampleError)
    assert "train-000001.tar" in str(error.value)
    assert MACHINE[number] in str(error.value)


def test_it_ends_in_a_loader_process_too(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = source(data)
    break_file(monkeypatch, "train-000001.tar", errno.EIO, True)
    with pytest.raises(UserError, match=r"train-000001\.tar: the disk failed \(input/output error\)"):
        list(loader(EvalStream(split, VIEWS, batch=8), 1, CPU))


def test_a_shard_that_is_gone_is_still_faulty_data(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split, rest = source(data), list[Skipped]()
    break_file(monkeypatch, "train-000001.tar", errno.ENOENT, False)
    seen = [key for batch in loader(EvalStream(split, VIEWS, batch=8), 0, CPU, rest) for key in batch["key"]]
    assert (len(seen), len(rest)) == (16, 16)


@pytest.mark.parametrize("reading", [False, True])
def test_a_joined_shard_that_cannot_be_read_is_not_missing(
    reading: bool, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        break_file(patch, "train-000001.tar", errno.EMFILE, reading)
        with pytest.raises(UserError, match="too many open files"):
            Join(data, load_dataset(data), tolerant=True)
    split = open_split(data, "train", "label", policy=Policy(max_faulty=0.9), join=[str(data)])
    break_file(monkeypatch, "train-000001.tar", errno.EMFILE, reading)
    with pytest.raises(UserError, match=r"too many open files") as error:
        split.complete({"__key__": "s00031", "__url__": "x", "__place__": 0}, frozenset({"depth.png"}))
    assert not isinstance(error.value, SampleError)


def test_a_modality_that_meets_a_full_disk_ends_the_run(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(self: Depth, data: bytes, meta: object) -> None:
        raise OSError(errno.ENOSPC, "it failed", "/tmp/scratch")

    monkeypatch.setattr(Depth, "decode", decode)
    with pytest.raises(UserError, match="/tmp/scratch: no space left"):
        list(loader(EvalStream(source(data), VIEWS, batch=8), 0, CPU))


@pytest.mark.parametrize("number", NUMBERS)
def test_commands_do_not_call_it_a_faulty_file(
    number: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"a\.png: "):
        refusal("a", "a.png", OSError(number, "it failed"))
    monkeypatch.setattr(Path, "read_bytes", lambda self: (_ for _ in ()).throw(OSError(number, "it failed")))
    with pytest.raises(UserError) as error:
        look_at_file(VIEWS["student"], tmp_path / "a.png")
    assert not isinstance(error.value, SampleError)
    monkeypatch.undo()
    break_file(monkeypatch, "train-000001.tar", number, True)
    with pytest.raises(UserError, match=r"train-000001\.tar: "):
        check(data, processes=1)
