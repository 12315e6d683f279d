"""The fixed stream: the same batches for any number of processes and workers."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
import torch
from shapes_dataset import members, write_dataset

from modalities import RGB, Depth
from pipeline.common.errors import UserError
from pipeline.data.dataset import MANIFEST
from pipeline.data.fixed_stream import FixedStream
from pipeline.data.manifest import load_dataset, write_shard
from pipeline.data.source import STRICT, Policy, open_split
from pipeline.data.stream import loader
from pipeline.data.views import View

VIEWS = {"teacher": View(RGB(), 24), "student": View(Depth(), 16)}


def read(folder: Path, ranks: int = 1, workers: int = 0, policy: Policy = STRICT, **about: int) -> list[list[int]]:
    """The indices of each global batch."""
    parts, source = [], open_split(folder, "train", "label", policy=policy)
    for rank in range(ranks):
        stream = FixedStream(source, VIEWS, **about, ranks=ranks, rank=rank)
        parts.append([batch["index"].tolist() for batch in loader(stream, workers, torch.device("cpu"))])
    return [[*chain(*same)] for same in zip(*parts, strict=True)]


@pytest.mark.parametrize(("ranks", "workers"), [(2, 0), (4, 0), (2, 2)])
@pytest.mark.parametrize(("batch", "most"), [(16, 1000), (36, 1000), (16, 40), (200, 1000), (200, 24)])
def test_batches_do_not_depend_on_processes_and_workers(
    shapes: Path, batch: int, most: int, ranks: int, workers: int
) -> None:
    found = read(shapes, batch=batch, most=most)
    assert read(shapes, ranks, workers, batch=batch, most=most) == found
    assert {len(one) for one in found} == {min(batch, most, 96)}
    distinct = {index for one in found for index in one}
    assert len(distinct) == min(96, -(-min(most, 96) // len(found[0])) * len(found[0]))
    assert max(distinct) >= 96 - 96 // len(found)  # not only the beginning


def test_a_sample_that_cannot_be_used_is_replaced_in_its_batch(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data", {"train": [12]})
    samples = [(f"s{i:05d}", members(i) | ({"depth.png": b""} if i in (1, 2, 8) else {})) for i in range(12)]
    about = load_dataset(folder)
    about.splits["train"] = [write_shard(folder / "train-000000.tar", samples)]
    (folder / MANIFEST).write_text(about.model_dump_json())
    found = read(folder, 2, batch=4, most=12, policy=Policy(max_faulty=0.5))
    assert [len(batch) for batch in found] == [4, 4, 4]
    assert {index for batch in found for index in batch} == set(range(12)) - {1, 2, 8}
    with pytest.raises(UserError, match=r"s00001"):
        read(folder, batch=4, most=12)
