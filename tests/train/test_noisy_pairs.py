"""A run on noisy pairs lists them all, resumes with the same bits, and finds the mismatched ones."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import launch
from safetensors.torch import load_file
from shapes_dataset import CLASSES, members
from sklearn.metrics import roc_auc_score

from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.data.dataset import MANIFEST, Dataset
from pipeline.data.manifest import write_shard
from pipeline.runs.checkpoint import list_checkpoints
from pipeline.runs.pairs_file import PAIRS, Pair, read_pairs
from pipeline.train import train

WCORD = "  cross_entropy: {}\n  kd: {weight: 2}\n  wcord: {dim: 8, queue: 32}"
NOISY = ("data.pairs=noisy", "train.log_every=1", "train.steps=45")


def run_config(path: Path, *overrides: str, **keywords: Any) -> Path:
    return train(configs.load(path, overrides), **keywords)


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def teacher(make_config: Any) -> str:
    return f"teacher: {{run: {run_config(make_config('teacher'), 'student.modality=rgb', 'train.steps=4')}}}"


def test_it_lists_every_pair_once(make_config: Any, teacher: str) -> None:
    run = run_config(make_config("student", teacher, WCORD), *NOISY)
    pairs = read_pairs(run)
    assert sorted(pair.key for pair in pairs) == [f"s{i:05d}" for i in range(96)]
    assert {(pair.shard, pair.place) for pair in pairs} >= {("train-000000.tar", 49), ("train-000002.tar", 15)}
    assert [pair.matches for pair in pairs] == sorted(pair.matches for pair in pairs)
    assert all(0 <= pair.matches <= 1 for pair in pairs)
    assert 0 <= rows(run)[-1]["pairs/mismatched"] <= 1


def test_correct_pairs_are_not_judged(make_config: Any, teacher: str) -> None:
    run = run_config(make_config("student", teacher, WCORD))
    assert not (run / PAIRS).exists()
    assert not any(key.startswith("pairs/") for key in rows(run)[-1])
    assert not any(
        "pair_filter" in key for key in load_file(list_checkpoints(run / "checkpoints")[-1] / "model.safetensors")
    )


def test_a_supervised_run_has_no_pairs(make_config: Any) -> None:
    assert read_pairs(run_config(make_config(), *NOISY)) == []


def test_a_mixture_names_the_dataset_of_each_pair(make_config: Any, teacher: str, shapes: Path) -> None:
    sources = f"data.shards=[{{path: {shapes}}}, {{path: {shapes}, weight: 2}}]"
    pairs = read_pairs(run_config(make_config("student", teacher, WCORD), *NOISY, sources))
    assert sorted((pair.source, pair.key) for pair in pairs) == [(n, f"s{i:05d}") for n in (0, 1) for i in range(96)]


def test_a_resumed_run_ends_with_the_same_bits(make_config: Any, teacher: str) -> None:
    settings = (*NOISY, "train.keep_checkpoints=9")
    whole = run_config(make_config("whole", teacher, WCORD), *settings)
    cut = Path(shutil.copytree(whole, whole.with_name("cut")))
    shutil.rmtree(cut / "student")
    for checkpoint in list_checkpoints(cut / "checkpoints")[1:]:
        shutil.rmtree(checkpoint)
    run_config(make_config("cut", teacher, WCORD), *settings, resume=True)
    one, two = (load_file(list_checkpoints(run / "checkpoints")[-1] / "model.safetensors") for run in (whole, cut))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert (whole / PAIRS).read_bytes() == (cut / PAIRS).read_bytes()


@pytest.mark.slow
def test_two_processes_agree(make_config: Any, teacher: str) -> None:
    """Ranks whose pair filters differ would leave out other pairs, and the checkpoint would be refused."""
    path = make_config("student", teacher, WCORD)
    done = launch(["train", str(path), *NOISY, "train.checkpoint_every=1"])
    assert done.returncode == 0, done.stderr
    assert len(read_pairs(Path(configs.load(path).run))) == 96


def test_it_cannot_be_combined_with_accumulation(make_config: Any, teacher: str) -> None:
    with pytest.raises(UserError, match=r"train\.accumulate: data\.pairs: noisy"):
        run_config(make_config("student", teacher, "  kd: {}"), *NOISY, "train.accumulate=2")


@pytest.mark.parametrize("text", ['{"key": 1}\n', "no JSON\n", "[]\n", "\xff\n"])
def test_another_file_is_not_taken_for_the_list(tmp_path: Path, text: str) -> None:
    (tmp_path / PAIRS).write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="not a list of pairs"):
        read_pairs(tmp_path)


def write_mismatched(folder: Path, samples: int, mismatched: int) -> Path:
    """Shapes of which the first ones have the photo of another one, of any class."""
    folder.mkdir()
    own = [members(index) for index in range(samples)]
    order = random.Random(0).sample(range(mismatched), mismatched)
    source = dict(zip(order, order[1:] + order[:1], strict=True))
    photos = [own[source.get(index, index)]["rgb.jpg"] for index in range(samples)]
    rows = [(f"s{i:05d}", one | {"rgb.jpg": photo}) for i, (one, photo) in enumerate(zip(own, photos, strict=True))]
    shard = write_shard(folder / "train-000000.tar", rows)
    about = Dataset(
        name="mismatched",
        recipe="test",
        fields=dict.fromkeys(("rgb.jpg", "depth.png", "label.txt", "meta.json"), samples),
        splits={"train": [shard]},
        classes={"label": CLASSES},
        units={"depth.png": "millimetres"},
        split_rule="all",
    )
    (folder / MANIFEST).write_text(about.model_dump_json())
    return folder


@pytest.mark.slow
def test_mismatched_pairs_are_the_most_doubtful(make_config: Any, tmp_path: Path) -> None:
    whole, broken = write_mismatched(tmp_path / "whole", 400, 0), write_mismatched(tmp_path / "broken", 400, 160)
    settings = (
        "train.steps=200",
        "train.learning_rate=0.01",
        "student.encoder.width=8",
        "train.log_every=50",
        "evaluation.split=train",
    )
    photos = run_config(make_config("teacher", shards=whole), "student.modality=rgb", *settings)
    path = make_config("student", f"teacher: {{run: {photos}}}", "  kd: {weight: 3}\n  wcord: {dim: 8}", shards=broken)
    run = run_config(path, *settings, "data.pairs=noisy")
    pairs: list[Pair] = read_pairs(run)
    assert roc_auc_score([pair.key < "s00160" for pair in pairs], [-pair.matches for pair in pairs]) > 0.7
    assert 0.1 < rows(run)[-1]["pairs/mismatched"] < 0.5
