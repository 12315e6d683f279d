"""The set in memory: the stream's pixels for the same draw, every sample once an epoch, and what it refuses."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from modalities import RGB, Depth
from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.data import in_memory
from pipeline.data.augmentation import Augmentation
from pipeline.data.in_memory import InMemory
from pipeline.data.source import open_split
from pipeline.data.stream import TrainStream, loader
from pipeline.data.views import View
from pipeline.runs.checkpoint import list_checkpoints
from pipeline.train import train

CPU = torch.device("cpu")
STILL = RGB(jitter=0.0)
VIEWS = {"teacher": View(STILL, 32), "student": View(STILL, 32)}
PADDED = {"flip": True, "pad": (4, 32)}
RGB_STUDENT = ["student.modality={name: rgb, jitter: 0}", "student.encoder.size=32", "data.crop=[1,1]"]


def memory(folder: Path, views: Any = VIEWS, seed: int = 0, labels: float = 1.0, **keywords: Any) -> InMemory:
    ranges = {name: keywords.pop(name) for name in ("flip", "pad", "crop") if name in keywords}
    source = open_split(folder, "train", "label", labels)
    return InMemory(source, views, Augmentation(seed, **ranges), device=CPU, **{"batch": 16, **keywords})


def by_key(batches: Any, count: int) -> dict[str, dict[str, Any]]:
    """Samples of so many batches, which make up an epoch."""
    found: dict[str, dict[str, Any]] = {}
    for batch in islice(batches, count):
        tensors = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
        for row, key in enumerate(batch["key"]):
            assert key not in found
            found[key] = {name: value[row] for name, value in tensors.items()}
    return found


@pytest.mark.parametrize("varied", [{}, {"flip": True}, PADDED, {"pad": (3, 16)}], ids=str)
def test_pixels_and_labels_are_those_of_the_stream(shapes: Path, varied: Any) -> None:
    source = open_split(shapes, "train", "label", 0.5)
    stream = loader(TrainStream(source, VIEWS, Augmentation(5, **varied), batch=16, shuffle=20), 0, CPU)
    held = iter(memory(shapes, seed=5, labels=0.5, **varied))
    for _ in range(2):  # epochs
        one, two = by_key(stream, 6), by_key(held, 6)
        assert one.keys() == two.keys()
        assert {name for sample in two.values() for name in sample} == {"teacher", "student", "index", "label", "group"}
        for key, sample in one.items():
            assert all(torch.equal(value, two[key][name]) for name, value in sample.items()), key


def test_a_batch_is_like_the_streams(shapes: Path) -> None:
    source = open_split(shapes, "train", "label")
    views = {"teacher": (View(STILL, 32), View(STILL, 16)), "student": View(STILL, 32)}
    one = next(loader(TrainStream(source, views, batch=16), 0, CPU))
    two = next(iter(memory(shapes, views)))
    assert one.keys() == two.keys()
    for name, value in one.items():
        for a, b in zip(value, two[name], strict=True):
            assert type(a) is type(b)
            assert not isinstance(a, torch.Tensor) or (a.shape, a.dtype) == (b.shape, b.dtype)
    assert two["student"].is_contiguous(memory_format=torch.channels_last)


def test_a_shift_is_the_same_part_of_the_photo_at_any_size(shapes: Path) -> None:
    """The photos have 32 pixels: 64 are scaled before the shift, in the stream behind it; only borders differ."""
    views = {"teacher": View(STILL, 64), "student": View(STILL, 32)}
    held = by_key(iter(memory(shapes, views, **PADDED)), 6)
    source = open_split(shapes, "train", "label")
    streamed = by_key(loader(TrainStream(source, views, Augmentation(**PADDED), batch=16), 0, CPU), 6)
    for key, sample in streamed.items():
        assert torch.equal(sample["student"], held[key]["student"])
        assert (sample["teacher"].float() - held[key]["teacher"].float()).abs().mean() < 2


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_sample_once_an_epoch_in_another_order_each(shapes: Path, ranks: int) -> None:
    parts = [memory(shapes, batch=24 // ranks, ranks=ranks, rank=rank, **PADDED) for rank in range(ranks)]
    assert {part.steps_per_epoch for part in parts} == {4}
    batches = [list(islice(part, 8)) for part in parts]
    for epoch in range(2):
        seen = Counter(key for part in batches for batch in part[4 * epoch : 4 * epoch + 4] for key in batch["key"])
        assert len(seen) == 96
        assert set(seen.values()) == {1}
    assert batches[0][0]["key"] != batches[0][4]["key"]


def test_ranks_share_the_global_batch_of_one(shapes: Path) -> None:
    whole = next(iter(memory(shapes, batch=24, **PADDED)))
    parts = [next(iter(memory(shapes, batch=12, ranks=2, rank=rank, **PADDED))) for rank in range(2)]
    assert whole["key"] == parts[0]["key"] + parts[1]["key"]
    assert torch.equal(whole["student"], torch.cat([part["student"] for part in parts]))


def test_what_does_not_fill_a_batch_is_left_out_other_samples_in_each_epoch(shapes: Path) -> None:
    held = list(islice(memory(shapes, batch=20), 8))  # 4 x 20 of 96
    left = [set(range(96)) - {i for batch in held[e : e + 4] for i in batch["index"].tolist()} for e in (0, 4)]
    assert [len(part) for part in left] == [16, 16]
    assert left[0] != left[1]


@pytest.mark.parametrize("start", [1, 6, 9])
def test_it_is_a_function_of_its_seed_and_can_start_at_any_batch(shapes: Path, start: int) -> None:
    whole = list(islice(memory(shapes, seed=3, **PADDED), 14))
    resumed = list(islice(memory(shapes, seed=3, start=start, **PADDED), 14 - start))
    for one, two in zip(whole[start:], resumed, strict=True):
        assert one["key"] == two["key"]
        assert torch.equal(one["student"], two["student"])
    assert next(iter(memory(shapes, seed=4, **PADDED)))["key"] != whole[0]["key"]


def test_a_run_in_memory_learns_and_resumes_to_the_same_bits(make_config: Any) -> None:
    teacher = train(configs.load(make_config("teacher"), [*RGB_STUDENT, "train.steps=4"]))
    losses = "  cross_entropy: {}\n  crd: {dim: 8}"
    path = make_config("student", f"teacher: {{run: {teacher}}}", losses)
    settings = [*RGB_STUDENT, "data.in_memory=true", "data.pad=[4,32]", "train.steps=null", "train.epochs=3"]
    run = train(configs.load(path, settings))
    whole = load_file(run / "student" / "model.safetensors")
    list_checkpoints(run / "checkpoints")[-1].rename(run / "later")
    train(configs.load(path, settings), resume=True)
    again = load_file(run / "student" / "model.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


@pytest.mark.parametrize("modality", [RGB(), Depth()])
def test_other_than_still_photos_are_refused(shapes: Path, modality: Any) -> None:
    with pytest.raises(UserError, match=r"data.in_memory: only photos without jitter are supported, not (RGB|Depth)\("):
        memory(shapes, {"teacher": View(STILL, 32), "student": View(modality, 32)})


def test_a_set_that_is_too_large_is_refused_before_it_is_read(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Little:
        available = 2 * 96 * 3 * 40 * 40 - 1

    monkeypatch.setattr(in_memory.psutil, "virtual_memory", Little)
    memory(shapes)
    message = r"96 photos need 0.0 GB, more than half of the 0.0 GB of free memory\. Set data.in"
    with pytest.raises(UserError, match=message):
        memory(shapes, **PADDED)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.join=[other]", "data: in_memory cannot be combined with join"),
        ("data.max_faulty=0.1", "data: in_memory cannot be combined with max_faulty"),
        ("data.crop=[0.5,1]", "data: in_memory cannot be combined with crop"),
        ("teacher.cache=one", "data.in_memory cannot be combined with teacher.cache"),
    ],
)
def test_what_cannot_be_held_is_refused_with_the_config(make_config: Any, setting: str, message: str) -> None:
    path = make_config(teacher="teacher: {run: somewhere}")
    with pytest.raises(UserError, match=message):
        configs.load(path, [*RGB_STUDENT, "data.in_memory=true", setting])


@pytest.mark.slow  # the compiler takes its time
def test_a_compiled_run_is_the_same_but_for_rounding(make_config: Any) -> None:
    settings = [*RGB_STUDENT, "data.in_memory=true", "train.steps=8", "student.encoder.width=2"]
    plain = train(configs.load(make_config("plain"), settings))
    compiled = train(configs.load(make_config("compiled"), [*settings, "train.compile=true"]))
    one, two = (load_file(run / "student" / "model.safetensors") for run in (plain, compiled))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-2, atol=1e-3)
