"""Several datasets in one stream: their shares, every sample in its turn, and a start at any batch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from shapes_dataset import CLASSES, write_dataset

from modalities import RGB
from pipeline.common.errors import UserError
from pipeline.config.settings import Config, SourceSettings
from pipeline.data.dataset import MANIFEST
from pipeline.data.mixture import MixedStream, Mixture, open_mixture
from pipeline.data.source import OpenDataset
from pipeline.data.stream import loader
from pipeline.data.views import View

VIEWS = {"student": View(RGB(jitter=0), 8)}


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("others"), {"train": [7, 20, 13], "test": [5]})


def config_of(sources: list[dict[str, Any]], **data: Any) -> Config:
    return Config.model_validate(
        {
            "run": "run",
            "data": {"shards": sources, **data},
            "student": {"modality": {"name": "rgb"}, "encoder": {"name": "cnn5"}},
            "losses": {"cross_entropy": {}},
            "train": {"steps": 1},
        }
    )


def mixture_of(shapes: Path, others: Path, **data: Any) -> Mixture:
    config = config_of([{"path": str(shapes), "weight": 3.0}, {"path": str(others), "weight": 1.0}], **data)
    return open_mixture(config, OpenDataset.from_config(config))


def batches(mixture: Mixture, count: int, *, workers: int = 0, **stream: Any) -> list[Mapping[str, Any]]:
    whole = MixedStream(mixture, VIEWS, **({"batch": 8, "shuffle": 10} | stream))
    return list(islice(loader(whole, workers, torch.device("cpu")), count))


@pytest.mark.parametrize("sampling", ["once", "with_replacement"])
def test_shares_hold_and_the_index_tells_the_source(shapes: Path, others: Path, sampling: str) -> None:
    mixture = mixture_of(shapes, others, sampling=sampling)
    index = torch.cat([batch["index"] for batch in batches(mixture, 50)])
    assert abs((index < 96).float().mean() - 0.75) < 0.02
    assert int(index.max()) < 96 + 40 == mixture.samples


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 2), (3, 1)])
def test_each_sample_of_a_source_comes_once_before_any_comes_again(
    shapes: Path, others: Path, ranks: int, workers: int
) -> None:
    mixture = mixture_of(shapes, others)
    found: Counter[int] = Counter()
    for rank in range(ranks):
        for batch in batches(mixture, 24 // ranks, batch=6, ranks=ranks, rank=rank, workers=workers):
            found.update(batch["index"].tolist())
    assert set(found.values()) <= {1, 2}, "144 samples: 108 of 96, and 36 of 40"
    assert all(found[index] >= 1 for index in range(96)) or ranks > 1
    assert max(found[index] for index in range(96, 136)) == 1


@pytest.mark.parametrize("sampling", ["once", "with_replacement"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [1, 7, 23, 40])
def test_it_can_start_at_any_batch(shapes: Path, others: Path, sampling: str, workers: int, start: int) -> None:
    mixture = mixture_of(shapes, others, sampling=sampling, flip=True)
    whole = batches(mixture, start + 4, workers=workers, ranks=2, rank=1)
    rest = batches(mixture, 4, workers=workers, ranks=2, rank=1, start=start)
    for one, other in zip(whole[start:], rest, strict=True):
        assert one["key"] == other["key"]
        assert torch.equal(one["student"], other["student"])


def test_a_batch_that_had_to_be_filled_up_is_the_same_after_a_start_in_its_middle(tmp_path: Path, shapes: Path) -> None:
    broken = write_dataset(tmp_path / "broken", {"train": [40], "test": [5]})
    config = config_of([{"path": str(shapes)}, {"path": str(broken)}], max_faulty=0.9)
    mixture = open_mixture(config, OpenDataset.from_config(config))
    shard = broken / "train-000000.tar"
    data = bytearray(shard.read_bytes())
    for place in range(0, len(data) - 4, 512):
        if data[place : place + 2] == b"\xff\xd8" and place // 512 % 3:  # two of three photos
            data[place : place + 2] = b"\0\0"
    size = mixture.sources[1].shards[0].model_copy(update={"sha256": ""})
    shard.write_bytes(data)
    object.__setattr__(mixture.sources[1], "shards", (size,))
    whole, rest = batches(mixture, 12), batches(mixture, 6, start=6)
    assert any(batch["skipped"] for batch in whole)
    assert [batch["key"] for batch in whole[6:]] == [batch["key"] for batch in rest]


def test_classes_are_matched_by_their_names(tmp_path: Path, shapes: Path) -> None:
    other = write_dataset(tmp_path / "other", {"train": [30], "test": [5]})
    text = (other / MANIFEST).read_text()
    (other / MANIFEST).write_text(text.replace('["disc","square","cross"]', '["round","cross","square"]'))
    sources = [{"path": str(shapes)}, {"path": str(other), "names": {"round": "disc"}}]
    config = config_of(sources)
    mixture = open_mixture(config, OpenDataset.from_config(config))
    assert mixture.sources[1].task.renumbered == (0, 2, 1)
    for batch in batches(mixture, 6):
        for index, label, key in zip(batch["index"], batch["label"], batch["key"], strict=True):
            own = int(key[1:]) % len(CLASSES)
            assert label == (own if index < 96 else (0, 2, 1)[own])
    broken = config_of([sources[0], {"path": str(other)}])
    opened = OpenDataset.from_config(broken)
    with pytest.raises(UserError, match=r"other: the class `round` is not a class of .*Map it to one with `names`"):
        open_mixture(broken, opened)


def test_masks_must_have_the_same_classes_in_the_same_order(tmp_path: Path) -> None:
    opened = []
    for name, classes in (("one", ["sky", "hand"]), ("other", ["hand", "sky"])):
        folder = write_dataset(tmp_path / name, {"train": [8], "test": [2]})
        about = json.loads((folder / MANIFEST).read_text())
        about["fields"]["mask.png"] = 10
        about |= {"classes": {"mask": classes}, "masks": {"mask": [0, 255]}}
        (folder / MANIFEST).write_text(json.dumps(about))
        opened.append(str(folder))
    config = config_of([{"path": path, "label": "mask"} for path in opened])
    first = OpenDataset.from_config(config)
    with pytest.raises(UserError, match=r"other: its mask classes, or their order, differ"):
        open_mixture(config, first)
    same = config_of([{"path": opened[0], "label": "mask"}] * 2)
    assert len(open_mixture(same, first).sources) == 2


def test_an_epoch_has_as_many_steps_as_asked_for(shapes: Path, others: Path) -> None:
    assert mixture_of(shapes, others).steps_per_epoch(8) == 17
    assert mixture_of(shapes, others, epoch_samples=1000).steps_per_epoch(8) == 125
    with pytest.raises(UserError, match=r"data.epoch_samples: an epoch has 5 samples, fewer than .* 8"):
        mixture_of(shapes, others, epoch_samples=5).steps_per_epoch(8)


def test_a_list_of_addresses_alone_is_one_data_set() -> None:
    data = config_of(["a.tar", "b.tar"]).data  # type: ignore[list-item]
    assert [source.path for source in data.sources] == ["a.tar::b.tar"]
    assert not data.mixed
    mixed = config_of(["a.tar", {"path": "b.tar"}], label="cls").data  # type: ignore[list-item]
    assert mixed.sources == [SourceSettings(path="a.tar", label="cls"), SourceSettings(path="b.tar")]
