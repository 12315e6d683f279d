"""Divides a plan into jobs of one shard each, which any process can run, repeat and identify."""

from __future__ import annotations

import hashlib
import json
import math
import random
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.packing.recipes.plan import Make, Plan, SourceSample
from pipeline.packing.splits import SPLITS


@dataclass(frozen=True)
class Part:
    """Some samples of a plan with their indices, in a given order, read lazily."""

    samples: Sequence[SourceSample]
    order: memoryview

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[tuple[int, SourceSample]]:
        return ((index, self.samples[index]) for index in self.order)

    def __reduce__(self) -> tuple[type, tuple[list[tuple[int, SourceSample]]]]:
        return list, (list(self),)  # sends the samples to other processes


@dataclass(frozen=True)
class ShardJob:
    """One shard to write.

    Attributes:
        folder: Folder of the dataset.
        file: Name of the shard.
        digest: Digest of everything that determines its content.
        samples: `(index, sample)`.
        make: Computes members that are not read from files.
        classes: Number of classes of the label.
        camera: Default camera of their `meta.json`.
    """

    folder: str
    file: str
    digest: str
    samples: Part | list[tuple[int, SourceSample]]
    make: Make | None
    classes: int | None
    camera: Mapping[str, Any]


def cut(plan: Plan, folder: str, placed: bytes, seed: int, shard_bytes: int, min_shards: int) -> list[ShardJob]:
    """Shuffle each split and divide it into shards of nearly equal counts.

    Args:
        plan: The plan.
        folder: Folder of the dataset.
        placed: Index in `SPLITS` of each sample.
        seed: Random seed of the shuffle.
        shard_bytes: Target size of a shard in bytes.
        min_shards: Minimum number of shards per split.
    """
    classes = len(plan.classes["label"]) if "label" in plan.classes else None
    sizes: Counter[int] = Counter()
    for place, sample in zip(placed, plan.samples, strict=True):
        sizes[place] += sample.size
    jobs = []
    for place, split in enumerate(SPLITS):
        chosen = array("I", (n for n, own in enumerate(placed) if own == place))
        random.Random(f"{seed} {split}").shuffle(chosen)
        count = min(max(math.ceil(sizes[place] / shard_bytes), min_shards), len(chosen))
        for number in range(count):
            order = memoryview(chosen)[number * len(chosen) // count : (number + 1) * len(chosen) // count]
            part = Part(plan.samples, order)
            file, digest = f"{split}-{number:06d}.tar", _digest(plan, part)
            jobs.append(ShardJob(folder, file, digest, part, plan.make, classes, plan.camera))
    return jobs


def _digest(plan: Plan, part: Part) -> str:
    """The digest of `[recipe, options, classes, [sample, …]]`, computed one sample at a time."""
    digest = hashlib.sha256(f"{_json([plan.recipe, plan.options, plan.classes])[:-1]}, [".encode())
    for place, (index, sample) in enumerate(part):
        digest.update(f"{', ' if place else ''}{_json(_identity(index, sample))}".encode())
    digest.update(b"]]")
    return digest.hexdigest()


def _identity(index: int, sample: SourceSample) -> list[object]:
    """Everything that the packed bytes of a sample depend on."""
    texts, labels = dict(sample.texts), [sample.label, dict(sample.labels)]
    return [index, sample.key, sample.group, sample.source, sorted(sample.files), sample.stamp, texts, labels]


def _json(content: object) -> str:
    return json.dumps(content, sort_keys=True)
