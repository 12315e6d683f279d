"""Run the teacher once and write its features of all training samples to cached-feature shards."""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from losses import Features
from losses import get as get_loss
from losses.base import Loss
from modalities.base import Geometry
from pipeline.common.errors import UserError
from pipeline.common.files import remove_stale_parts, write_atomic
from pipeline.common.progress import Progress
from pipeline.config.settings import Config
from pipeline.data.augmentation import Augmentation
from pipeline.data.dataset import Shard
from pipeline.data.feature_cache import Cache, differences, encode, manifest_path, member, sidecar_name
from pipeline.data.manifest import write_shard
from pipeline.data.prepare import Prepare
from pipeline.data.remote import pin
from pipeline.data.shard_reader import Sample, stamp, verify_shard
from pipeline.data.skipped import SKIPPED, Skipped, append_skipped, counts, in_words
from pipeline.data.source import OpenDataset, Source
from pipeline.data.stream import Fault, loader, ready
from pipeline.models.build import build_teacher, fingerprint
from pipeline.models.check_teacher import FEWEST, MOST, check_features, check_finite, check_weights, parts_of
from pipeline.models.network import Joint, Network
from pipeline.models.precision import precision_of
from pipeline.train.launch import owned_by_all, start_accelerator
from pipeline.train.load_once import loaded_once, pin_teacher

log = logging.getLogger(__name__)

CHUNK = 64
"""Number of samples whose views are computed together."""


def cache(config: Config) -> Path:
    """Cache the teacher's features of the training split under the name `teacher.cache`.

    Shards are distributed over the processes. Finished cached-feature shards are kept.

    Args:
        config: The config.

    Returns:
        Path of the manifest of the cache.

    Raises:
        UserError: `teacher.cache` is not set; training on the cache would be impossible; or, after the cache was
            written, more samples than `data.max_faulty` allows could not be read.
    """
    accelerator = start_accelerator(config)
    if config.teacher is None or config.teacher.cache is None:
        raise UserError("teacher.cache: set the name of the cache, e.g. `teacher.cache=rgb_teacher`.")
    check_weights(config)
    name = config.teacher.cache
    config = pin_teacher(config, accelerator)
    data = OpenDataset.from_config(config, loaded_once(accelerator))
    teacher, source = build_teacher(config, data), data.split("train")
    assert teacher is not None
    about = _describe(name, config, teacher, data)
    _check_shared(source.folder, name, accelerator)
    teacher.eval().to(accelerator.device)
    own = list(source.shards[accelerator.process_index :: accelerator.num_processes])
    random.Random().shuffle(own)  # so jobs of a job array rarely compute the same shard
    skipped: list[Skipped] = []
    # The jobs of a job array may write one cache together, since all of them write the same.
    work = sha256(about.model_dump_json().encode()).hexdigest()
    with owned_by_all(accelerator, source.folder / name, work):
        remove_stale_parts(source.folder)
        with Progress(f"caching {name}", sum(shard.samples for shard in own)) as progress:
            for shard in own:
                if _finished(source, shard, about) is None:
                    known = len(skipped)
                    sidecar = _write(source, shard, about, teacher, config, accelerator, skipped)
                    receipt = _with(about, shard, sidecar, sum(not s.unpaired for s in skipped[known:]))
                    write_atomic(_receipt(source, shard, name), receipt.model_dump_json().encode())
                progress.advance(shard.samples)
        if accelerator.is_main_process:
            whole = _write_manifest(source, about, config.train.timeout)
    accelerator.end_training()
    if skipped:
        listed = source.folder / f"{name}.{SKIPPED}"
        append_skipped(listed, skipped)
        log.warning(
            f"{len(skipped)} samples were skipped and have no features: {in_words(counts(skipped))}; listed in {listed}"
        )
    if accelerator.is_main_process:
        whole.check_faulty(source.samples, config.data.max_faulty)
    return manifest_path(source.folder, name)


def _describe(name: str, config: Config, teacher: Network | Joint, data: OpenDataset) -> Cache:
    """The manifest of the cache, without its shards."""
    assert config.teacher is not None
    kinds: list[type[Loss]] = [get_loss(loss) for loss in config.losses]
    maps = any(kind.needs_maps for kind in kinds)
    return Cache(
        name=name,
        fingerprint=fingerprint(config, teacher, data),
        views=config.teacher.views,
        dtype=config.teacher.cache_dtype,
        precision=precision_of(config),
        pooled=teacher.dims.pooled,
        maps=list(teacher.dims.maps) if maps else [],
        classes=teacher.classes,
        dense=teacher.dense,
        licence=data.manifest.licence,
        sidecars={},
    )


def _write_manifest(source: Source, about: Cache, patience: float) -> Cache:
    """Wait for all cached-feature shards, and replace their receipts by the manifest of the cache."""
    found = {shard.file: _await(source, shard, about, patience) for shard in source.shards}
    sidecars = {file: sidecar for file, (sidecar, _) in found.items()}
    faulty = {file: count for file, (_, count) in found.items() if count}
    whole = about.model_copy(update={"sidecars": sidecars, "faulty": faulty})
    write_atomic(manifest_path(source.folder, about.name), whole.model_dump_json(indent=1).encode())
    for shard in source.shards:
        _receipt(source, shard, about.name).unlink(missing_ok=True)
    return whole


def _with(about: Cache, shard: Shard, sidecar: Shard, faulty: int) -> Cache:
    own = about.fingerprint.model_copy(update={"shards": {shard.file: shard.content}})
    counted = {shard.file: faulty} if faulty else {}
    return about.model_copy(update={"sidecars": {shard.file: sidecar}, "faulty": counted, "fingerprint": own})


def _receipt(source: Source, shard: Shard, name: str) -> Path:
    """Marks one cached-feature shard as finished, until the manifest lists all of them."""
    return source.folder / f"{sidecar_name(shard.file, name)}.json"


def _finished(source: Source, shard: Shard, about: Cache) -> tuple[Shard, int] | None:
    """The cached-feature shard of a shard and its number of faulty samples; None if it is not finished.

    It counts as finished if an earlier run or another process wrote it for the same teacher and augmentation.
    """
    for path in (_receipt(source, shard, about.name), manifest_path(source.folder, about.name)):
        try:
            found = Cache.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            continue
        packed = found.fingerprint.shards.get(shard.file, "")
        own = found.fingerprint.model_copy(update={"shards": {shard.file: packed}})
        wanted = about.fingerprint.model_copy(update={"shards": {shard.file: shard.content}})
        same = all(getattr(found, key) == getattr(about, key) for key in ("views", "dtype", "precision", "maps"))
        sidecar = found.sidecars.get(shard.file)
        if sidecar is None or differences(own, wanted) or not same:
            continue
        file = source.folder / sidecar.file
        if file.is_file() and verify_shard(file, sidecar, stamp(file)) is None:
            return sidecar, found.faulty.get(shard.file, 0)
    return None


def _check_shared(folder: Path, name: str, accelerator: Accelerator) -> None:
    """Raise UserError unless all processes can see the files that the first process writes to the dataset folder."""
    if accelerator.num_processes == 1:
        return
    token = folder / f"{name}.cache.token"
    if accelerator.is_main_process:
        token.touch()
    accelerator.wait_for_everyone()
    seen = accelerator.gather(torch.tensor([float(token.exists())], device=accelerator.device))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        token.unlink()
    if seen.min() == 0:
        raise UserError(
            f"{folder}: files that the first process writes there are visible to {int(seen.sum())} of {len(seen)} "
            "processes. Put the shards in a shared folder, or run `wcord cache` on one machine and copy the "
            "cached-feature shards."
        )


def _await(source: Source, shard: Shard, about: Cache, patience: float) -> tuple[Shard, int]:
    """Wait until a process has finished the cached-feature shard of a shard.

    This is not a collective operation, which would time out even while another process makes progress. Raises
    UserError if nothing is written for `patience` seconds.
    """
    seen: dict[str, int] = {}
    since = time.monotonic()
    while (found := _finished(source, shard, about)) is None:
        written = _written(source.folder, about.name)
        if written != seen:
            seen, since = written, time.monotonic()
        if time.monotonic() - since > patience:
            raise UserError(
                f"{source.folder / sidecar_name(shard.file, about.name)}: the process that writes this file has made "
                f"no progress for {patience:g} s (train.timeout). Run `wcord cache` again; finished shards are kept."
            )
        time.sleep(0.5)
    return found


def _written(folder: Path, name: str) -> dict[str, int]:
    """File -> size, for all cached-feature shards (finished or not) and their receipts."""
    found = {}
    for path in folder.glob(f"*.{name}.tar*"):
        with suppress(FileNotFoundError):  # finished and renamed meanwhile
            found[path.name] = path.stat().st_size
    return found


def _write(
    source: Source,
    shard: Shard,
    about: Cache,
    teacher: Network | Joint,
    config: Config,
    accelerator: Accelerator,
    skipped: list[Skipped],
) -> Shard:
    stream = _Views(source, shard, teacher, Augmentation.from_config(config), about.views)
    batches = loader(stream, config.data.workers, accelerator.device)
    dtype = getattr(torch, about.dtype)

    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        keys: list[str] = []
        some: list[Tensor] = []
        for chunk in batches:
            skipped.extend(chunk["skipped"])
            features = [_features(teacher, view, len(about.maps), dtype, accelerator) for view in chunk["views"]]
            for one in features:
                _check(check_finite, one, shard, chunk["key"], teacher)
            keys += chunk["key"]
            some += [one["pooled"][:FEWEST] for one in features[:1]]  # empty if no sample of the chunk is readable
            for row, key in enumerate(chunk["key"]):
                yield (
                    key,
                    {
                        member(view): encode({name: x[row] for name, x in one.items()}, chunk["geometry"][view][row])
                        for view, one in enumerate(features)
                    },
                )
        if some:  # over the whole shard, since neighbouring samples may be identical frames
            rows = torch.cat(some)
            _check(check_features, {"pooled": rows[:: -(-len(rows) // MOST)]}, shard, keys, teacher)

    path = source.folder / sidecar_name(shard.file, about.name)
    pin(path)
    return write_shard(path, samples())


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
def _features(
    teacher: Network | Joint, x: Any, maps: int, dtype: torch.dtype, accelerator: Accelerator
) -> dict[str, Tensor]:
    with accelerator.autocast():
        found = teacher(x)
    named = {"pooled": found.pooled, **{f"map{i}": found.maps[i] for i in range(maps)}}
    if found.logits is not None:
        named["logits"] = found.logits
    return {name: value.to("cpu", dtype) for name, value in named.items()}


class _Views(IterableDataset[Any]):
    """All views of the samples of a shard as input of the teacher, in order, CHUNK samples at a time."""

    def __init__(
        self, source: Source, shard: Shard, teacher: Network | Joint, augmentation: Augmentation, views: int
    ) -> None:
        super().__init__()
        self.source, self.views = replace(source, shards=(shard,)), views
        # View v equals the view of epoch v in a run without a cache.
        self.prepare = Prepare(self.source, {"teacher": teacher.view}, augmentation)

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        chunk: list[Sample] = []
        try:
            for place, raw in enumerate(self.source.read(self.prepare.members)):
                if place // CHUNK % workers == worker:
                    chunk.append(raw)
                    if len(chunk) == CHUNK or place == self.source.samples - 1:
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
            "views": [self.prepare.collate(view)["teacher"] for view in views] if usable else [],
            "geometry": [[_geometry(sample) for sample in view] for view in views],
            "skipped": skipped,
        }


def _geometry(sample: Sample) -> Geometry:
    geometry: Geometry = sample["geometry"]
    return geometry


def describe(path: Path) -> str:
    """Describe a finished cache in one line. path: Path of its manifest."""
    about = Cache.model_validate_json(path.read_bytes())
    size = sum(sidecar.bytes for sidecar in about.sidecars.values())
    samples = sum(sidecar.samples for sidecar in about.sidecars.values())
    kinds = json.dumps({"pooled": about.pooled, "maps": about.maps, "classes": len(about.classes or [])})
    return f"{path}: {samples} samples x {about.views} views, {about.dtype}, {kinds}, {size / 1e6:.1f} MB"
