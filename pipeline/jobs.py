"""A plan cut into jobs, a shard each, which any process can do, repeat and recognise."""

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

from pipeline.recipes import Make, Plan, Sample
from pipeline.splits import SPLITS


@dataclass(frozen=True)
class Part:
    """Some of a plan's samples, each with its index, in an order of their own; read when they are wanted."""

    samples: Sequence[Sample]
    order: memoryview

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[tuple[int, Sample]]:
        return ((index, self.samples[index]) for index in self.order)

    def __reduce__(self) -> tuple[type, tuple[list[tuple[int, Sample]]]]:
        return list, (list(self),)  # another process gets the samples themselves


@dataclass(frozen=True)
class Job:
    """One shard to be written. digest: of everything that decides its content. samples: `(index, sample)`.

    camera: what their `meta.json` says of it, where they do not say it themselves.
    """

    folder: str
    file: str
    digest: str
    samples: Part | list[tuple[int, Sample]]
    make: Make | None
    classes: int | None
    camera: Mapping[str, Any]


def cut(plan: Plan, folder: str, placed: bytes, seed: int, shard_bytes: int, min_shards: int) -> list[Job]:
    """Shuffle each split and cut it into shards of nearly equal counts. placed: each sample's place in `SPLITS`."""
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
            jobs.append(Job(folder, file, digest, part, plan.make, classes, plan.camera))
    return jobs


def _digest(plan: Plan, part: Part) -> str:
    """The digest of `[recipe, options, classes, [sample, …]]`, a sample at a time."""
    digest = hashlib.sha256(f"{_json([plan.recipe, plan.options, plan.classes])[:-1]}, [".encode())
    for place, (index, sample) in enumerate(part):
        digest.update(f"{', ' if place else ''}{_json(_identity(index, sample))}".encode())
    digest.update(b"]]")
    return digest.hexdigest()


def _identity(index: int, sample: Sample) -> list[object]:
    """What a sample's packed bytes depend on."""
    texts, labels = dict(sample.texts), [sample.label, dict(sample.labels)]
    return [index, sample.key, sample.group, sample.source, sorted(sample.files), sample.stamp, texts, labels]


def _json(content: object) -> str:
    return json.dumps(content, sort_keys=True)
