"""Write one cached-feature shard: run the teacher on the samples of a shard, as far as no journal has its features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import merge
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import IterableDataset

from losses import Features
from modalities.base import Geometry
from pipeline.common.errors import UserError
from pipeline.config.settings import Config
from pipeline.data.augmentation import Augmentation
from pipeline.data.dataset import Shard
from pipeline.data.feature_cache import Cache, decode, encode, member, sidecar_name
from pipeline.data.feature_journal import Journal
from pipeline.data.manifest import write_shard
from pipeline.data.prepare import Prepare
from pipeline.data.remote import pin
from pipeline.data.shard_reader import Sample
from pipeline.data.skipped import Skipped
from pipeline.data.source import Source
from pipeline.data.stream import Fault, loader, ready, worker_place
from pipeline.models.check_teacher import FEWEST, MOST, check_features, check_finite, parts_of
from pipeline.models.network import Joint, Network

CHUNK = 64
"""Number of samples whose views are computed together."""

Stored = tuple[int, str, dict[str, bytes]]
"""Place of a sample in its shard, its key, and its members in the cached-feature shard."""


@dataclass(frozen=True)
class Job:
    """What writing the cached-feature shards of a split needs.

    Attributes:
        about: The manifest of the cache, without cached-feature shards.
        source: The split.
        teacher: The teacher, on the device of this process.
        config: The config.
        accelerator: The accelerator.
        journal: Features that training has already computed; None if there are none.
        skipped: Samples that could not be used; `write_features` appends to it.
    """

    about: Cache
    source: Source
    teacher: Network | Joint
    config: Config
    accelerator: Accelerator
    journal: Journal | None = None
    skipped: list[Skipped] = field(default_factory=list)


def write_features(job: Job, shard: Shard) -> Shard:
    """Write the cached-feature shard of a shard.

    Args:
        job: The cache.
        shard: The shard.

    Returns:
        The entry of the cached-feature shard in the manifest of the cache.

    Raises:
        UserError: A sample cannot be used, or the teacher's features are useless.
    """
    known = job.journal.complete(shard) if job.journal is not None else []
    missing = sorted(set(range(shard.samples)).difference(known))
    keys: list[str] = []
    some: list[Tensor] = []

    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        parts = (_known(job, shard, known, some), _computed(job, shard, missing, some))
        for _, key, members in merge(*parts, key=lambda stored: stored[0]):
            keys.append(key)
            yield key, members
        if some:  # over the whole shard, since neighbouring samples may be identical frames
            rows = torch.cat(some)
            _check(check_features, {"pooled": rows[:: -(-len(rows) // MOST)]}, shard, keys, job.teacher)

    path = job.source.folder / sidecar_name(shard.file, job.about.name)
    pin(path)
    return write_shard(path, samples())


def _known(job: Job, shard: Shard, places: Sequence[int], some: list[Tensor]) -> Iterator[Stored]:
    """The samples whose features are in a journal, in order. Appends the pooled features of some of them to `some`."""
    for number, place in enumerate(places):
        assert job.journal is not None
        records = [job.journal.load(view, job.journal.first(shard) + place) for view in range(job.about.views)]
        found = [record for record in records if record is not None]
        if number % (CHUNK // FEWEST) == 0:
            some.append(decode(found[0].features)[0]["pooled"][None])
        yield place, found[0].key, {member(view): record.features for view, record in enumerate(found)}


def _computed(job: Job, shard: Shard, places: Sequence[int], some: list[Tensor]) -> Iterator[Stored]:
    """Run the teacher on the usable ones of these samples, in order; see `_known`."""
    if not places:
        return
    stream = _Views(job, shard, frozenset(places))
    dtype = getattr(torch, job.about.dtype)
    for chunk in loader(stream, job.config.data.workers, job.accelerator.device):
        job.skipped.extend(chunk["skipped"])
        features = [_features(job, view, dtype) for view in chunk["views"]]
        for one in features:
            _check(check_finite, one, shard, chunk["key"], job.teacher)
        some += [one["pooled"][:FEWEST] for one in features[:1]]  # empty if no sample of the chunk is readable
        for row, (place, key) in enumerate(zip(chunk["place"], chunk["key"], strict=True)):
            members = {
                member(view): encode({name: x[row] for name, x in one.items()}, chunk["geometry"][view][row])
                for view, one in enumerate(features)
            }
            yield place, key, members


def _check(
    judge: Callable[[Features, Mapping[str, int]], None],
    found: Mapping[str, Tensor],
    shard: Shard,
    keys: Sequence[str],
    teacher: Network | Joint,
) -> None:
    """Check features before they are stored. The error message contains shard and samples."""
    maps = [value for name, value in found.items() if name.startswith("map")]
    try:
        judge(Features(found["pooled"], maps, found.get("logits")), parts_of(teacher))
    except UserError as error:
        raise UserError(
            f"{shard.file}: samples {keys[0]} to {keys[-1]}: {error} Nothing of this shard was cached."
        ) from None


@torch.no_grad()
def _features(job: Job, x: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    with job.accelerator.autocast():
        found = job.teacher(x)
    return {name: value.to("cpu", dtype) for name, value in named(found, len(job.about.maps)).items()}


def named(features: Features, maps: int) -> dict[str, Tensor]:
    """The tensors that a cache stores of a batch of features.

    Args:
        features: The features.
        maps: Number of feature maps that are stored.
    """
    found = {"pooled": features.pooled, **{f"map{i}": features.maps[i] for i in range(maps)}}
    return found | ({} if features.logits is None else {"logits": features.logits})


class _Views(IterableDataset[Any]):
    """All views of some samples of a shard as input of the teacher, in order, CHUNK samples at a time."""

    def __init__(self, job: Job, shard: Shard, places: frozenset[int]) -> None:
        super().__init__()
        self.source, self.views, self.places = replace(job.source, shards=(shard,)), job.about.views, places
        # View v equals the view of epoch v in a run without a cache.
        augmentation = Augmentation.from_config(job.config)
        self.prepare = Prepare(self.source, {"teacher": job.teacher.view}, augmentation)

    def __iter__(self) -> Iterator[Any]:
        worker, workers = worker_place()
        chunk: list[Sample] = []
        try:
            wanted = (raw for raw in self.source.read(self.prepare.members) if raw["__place__"] in self.places)
            for number, raw in enumerate(wanted):
                if number // CHUNK % workers == worker:
                    chunk.append(raw)
                    if len(chunk) == CHUNK or number == len(self.places) - 1:
                        yield self._chunk(chunk)
                        chunk = []
        except UserError as error:
            yield Fault(str(error))

    def _chunk(self, raws: Sequence[Sample]) -> dict[str, Any]:
        skipped: list[Skipped] = []
        first = [(raw, sample) for raw in raws if (sample := ready(self.prepare, raw, 0, skipped)) is not None]
        usable = [raw for raw, _ in first]
        more = [[self.prepare(raw, view) for raw in usable] for view in range(1, self.views)]
        views = [[sample for _, sample in first], *more]
        return {
            "key": [raw["__key__"] for raw in usable],
            "place": [raw["__place__"] for raw in usable],
            "views": [self.prepare.collate(view)["teacher"] for view in views] if usable else [],
            "geometry": [[_geometry(sample) for sample in view] for view in views],
            "skipped": skipped,
        }


def _geometry(sample: Sample) -> Geometry:
    geometry: Geometry = sample["geometry"]
    return geometry
