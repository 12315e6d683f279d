"""A dataset that is opened once: its splits, and what they offer those who look at its samples."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from modalities import RGB, Depth, Geometry
from pipeline.data.augmentation import Augmentation
from pipeline.data.dataset import MANIFEST, Layout
from pipeline.data.pictures import pictures
from pipeline.data.prepare import Prepare
from pipeline.data.source import Policy, open_dataset, open_split
from pipeline.data.views import View, ViewSpec

VIEWS = {"teacher": View(RGB(), 24), "student": View(Depth(), 16)}


def test_splits_need_no_manifest_once_it_is_read(shapes: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shapes, tmp_path / "data"))
    opened = open_dataset(folder, "parity")
    (folder / MANIFEST).unlink()
    assert (opened.classes, opened.dense) == (["even", "odd"], False)
    assert (opened.split("train").samples, opened.split("test").samples) == (96, 30)
    assert opened.split("train", 0.5, 3) == replace(
        open_split(shapes, "train", "parity", 0.5, 3), layout=Layout(folder, split="train")
    )


def test_both_splits_share_the_index_of_what_is_joined(shapes: Path) -> None:
    opened = open_dataset(shapes, join=[str(shapes)])
    assert opened.split("train").joined[0] is opened.split("test").joined[0]


def test_what_a_source_offers(shapes: Path) -> None:
    source = open_split(shapes, "train", "label")
    assert source.labelled()
    assert not open_split(shapes, "train", "label", visible_labels=1e-9).labelled()
    assert [raw["__key__"] for raw in source.read(frozenset(), 48, 53)] == [f"s{i:05d}" for i in range(48, 53)]
    assert next(source.seen(VIEWS["student"])).shape[1:] == (16, 16)
    ((key, seen),) = pictures(source, VIEWS, {"s00060"})
    assert (key, seen.keys()) == ("s00060", {"teacher", "student"})


@pytest.mark.parametrize("unpaired", ["error", "keep"])
def test_the_transform_opens_no_shard(shapes: Path, tmp_path: Path, unpaired: str) -> None:
    folder = Path(shutil.copytree(shapes, tmp_path / "data"))
    source = open_split(folder, "train", "label", policy=Policy(unpaired=unpaired))
    prepare = Prepare(source, VIEWS, Augmentation(flip=True))
    raws = list(source.read(prepare.members, 0, 4))
    shutil.rmtree(folder)
    if unpaired == "keep":
        del raws[0]["rgb.jpg"]
    batch = prepare.collate([prepare(raw, 0) for raw in raws])
    assert batch["teacher"].shape == (4, 3, 24, 24)
    assert batch["student"].shape[0] == 4
    assert torch.equal(batch["label"], torch.tensor([0, 1, 2, 0]))


def test_networks_with_equal_views_share_a_batch(shapes: Path) -> None:
    source, view = open_split(shapes, "train", "label"), View(RGB(), 16)
    views: dict[str, ViewSpec] = {"teacher": view, "student": View(RGB(), 16), "both": (view,)}
    views["other"] = View(RGB(), 16, crop=0.5)
    prepare = Prepare(source, views, Augmentation(flip=True))
    batch = prepare.collate([prepare(raw, 0) for raw in source.read(prepare.members, 0, 4)])
    assert batch["teacher"] is batch["student"]
    assert not torch.equal(batch["other"], batch["student"])
    assert torch.equal(batch["both"][0], batch["student"])


class Noted(RGB):
    """Photos that note the generators they get."""

    def augment(self, value: np.ndarray, geometry: Geometry, size: int, rng: np.random.Generator | None) -> Tensor:
        GIVEN.append(rng)
        return super().augment(value, geometry, size, rng)


GIVEN: list[np.random.Generator | None] = []


@pytest.mark.parametrize("jitter", [0.0, 0.1])
def test_a_generator_is_made_only_for_random_modalities(shapes: Path, jitter: float) -> None:
    source = open_split(shapes, "train", "label")
    prepare = Prepare(source, {"student": View(Noted(jitter=jitter), 16)}, Augmentation(flip=True))
    GIVEN.clear()
    seen = prepare(next(source.read(prepare.members)), 0)["student"]
    assert [rng is not None for rng in GIVEN] == [jitter > 0]
    plain = Prepare(source, {"student": View(RGB(jitter=0.0), 16)}, Augmentation(flip=True))
    same = torch.equal(seen, plain(next(source.read(plain.members)), 0)["student"])
    assert same == (jitter == 0)
