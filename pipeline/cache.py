"""Run the teacher once: write its features of every training sample into side-car shards, a shard at a time."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from losses import LOSSES
from losses.base import Loss
from modalities.base import Geometry
from modalities.encoders import find
from pipeline.config import Config
from pipeline.draw import Draw
from pipeline.errors import UserError
from pipeline.launch import precision_of, start_accelerator
from pipeline.model import build_teacher, fingerprint
from pipeline.network import Joint, Network
from pipeline.prepare import Prepare
from pipeline.progress import Progress
from pipeline.remote import keep
from pipeline.samples import Sample, distrust, read_range, stamp
from pipeline.shards import Shard, load_dataset, write_atomic, write_shard
from pipeline.sidecar import Cache, differences, encode, manifest_path, member, sidecar_name
from pipeline.skipped import SKIPPED, Skipped, append_skipped, counts, in_words
from pipeline.source import Policy, Source, open_split
from pipeline.stream import Fault, loader, ready

CHUNK = 64
"""Samples of which all views are computed at a time."""


def cache(config: Config) -> Path:
    """Write the teacher's features of the training split under `teacher.cache`; the path of the manifest.

    The shards are shared by the processes; one whose side-car is whole is not computed again. Raises UserError if the
    config names no cache, for what makes training on it impossible, and, once it is written, if more samples than
    `data.max_faulty` could not be read.
    """
    accelerator = start_accelerator(config)
    teacher = build_teacher(config)
    if config.teacher is None or config.teacher.cache is None or teacher is None:
        raise UserError("teacher.cache: must name the cache, for example `teacher.cache=rgb_teacher`.")
    name = config.teacher.cache
    policy = Policy(config.data.max_faulty, config.data.unpaired)
    source = open_split(config.data.shards, "train", config.data.label, policy=policy, join=config.data.join)
    kinds: list[type[Loss]] = [find(loss, LOSSES, Loss, "loss") for loss in config.losses]
    maps = any(kind.needs_maps for kind in kinds)
    about = Cache(
        name=name,
        fingerprint=fingerprint(config, teacher, source),
        views=config.teacher.views,
        dtype=config.teacher.cache_dtype,
        precision=precision_of(config),
        pooled=teacher.dims.pooled,
        maps=list(teacher.dims.maps) if maps else [],
        classes=teacher.classes,
        dense=teacher.dense,
        licence=load_dataset(source.folder).licence,
        sidecars={},
    )
    _check_shared(source.folder, name, accelerator)
    teacher.eval().to(accelerator.device)
    own = list(source.shards[accelerator.process_index :: accelerator.num_processes])
    random.Random().shuffle(own)  # jobs of an array then seldom compute the same one
    skipped: list[Skipped] = []
    with Progress(f"caching {name}", sum(shard.samples for shard in own)) as progress:
        for shard in own:
            if _finished(source, shard, about) is None:
                known = len(skipped)
                sidecar = _write(source, shard, about, teacher, config, accelerator, skipped)
                receipt = _with(about, shard, sidecar, sum(not s.unpaired for s in skipped[known:]))
                write_atomic(_receipt(source, shard, name), receipt.model_dump_json().encode())
            progress.advance(shard.samples)
    path = manifest_path(source.folder, name)
    if accelerator.is_main_process:
        found = {shard.file: _await(source, shard, about, config.train.timeout) for shard in source.shards}
        sidecars = {file: sidecar for file, (sidecar, _) in found.items()}
        faulty = {file: count for file, (_, count) in found.items() if count}
        whole = about.model_copy(update={"sidecars": sidecars, "faulty": faulty})
        write_atomic(path, whole.model_dump_json(indent=1).encode())
        for shard in source.shards:
            _receipt(source, shard, name).unlink(missing_ok=True)
    accelerator.end_training()
    if skipped:
        listed = source.folder / f"{name}.{SKIPPED}"
        append_skipped(listed, skipped)
        print(f"{len(skipped)} samples have no features: {in_words(counts(skipped))}; listed in {listed}", flush=True)
    if accelerator.is_main_process:
        whole.check_faulty(source.samples, config.data.max_faulty)
    return path


def _with(about: Cache, shard: Shard, sidecar: Shard, faulty: int) -> Cache:
    own = about.fingerprint.model_copy(update={"shards": {shard.file: shard.sha256}})
    counted = {shard.file: faulty} if faulty else {}
    return about.model_copy(update={"sidecars": {shard.file: sidecar}, "faulty": counted, "fingerprint": own})


def _receipt(source: Source, shard: Shard, name: str) -> Path:
    """Says that the side-car of one shard is whole, until the manifest says it of all."""
    return source.folder / f"{sidecar_name(shard.file, name)}.json"


def _finished(source: Source, shard: Shard, about: Cache) -> tuple[Shard, int] | None:
    """The side-car of a shard, if an earlier run or another process finished it for the same teacher and draw, and how
    many of its samples could not be read."""
    for path in (_receipt(source, shard, about.name), manifest_path(source.folder, about.name)):
        try:
            found = Cache.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            continue
        packed = found.fingerprint.shards.get(shard.file, "")
        own = found.fingerprint.model_copy(update={"shards": {shard.file: packed}})
        wanted = about.fingerprint.model_copy(update={"shards": {shard.file: shard.sha256}})
        same = all(getattr(found, key) == getattr(about, key) for key in ("views", "dtype", "precision", "maps"))
        sidecar = found.sidecars.get(shard.file)
        if sidecar is None or differences(own, wanted) or not same:
            continue
        file = source.folder / sidecar.file
        if file.is_file() and distrust(file, sidecar, stamp(file)) is None:
            return sidecar, found.faulty.get(shard.file, 0)
    return None


def _check_shared(folder: Path, name: str, accelerator: Accelerator) -> None:
    """UserError unless all processes see what the first one writes beside the shards."""
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
            f"{folder}: {int(seen.sum())} of {len(seen)} processes see what the first one writes there. Put the shards "
            "where all machines can read and write them, or run `wcord cache` on one machine and copy the side-cars."
        )


def _await(source: Source, shard: Shard, about: Cache, patience: float) -> tuple[Shard, int]:
    """The side-car of a shard once some process has finished it: not a collective, which would run out of time however
    much is written meanwhile. UserError once nothing was for so many seconds."""
    seen: dict[str, int] = {}
    since = time.monotonic()
    while (found := _finished(source, shard, about)) is None:
        written = _written(source.folder, about.name)
        if written != seen:
            seen, since = written, time.monotonic()
        if time.monotonic() - since > patience:
            raise UserError(
                f"{source.folder / sidecar_name(shard.file, about.name)}: the process that was to write it has written "
                f"nothing for {patience:g} s (train.timeout). Run `wcord cache` again: what is done is kept."
            )
        time.sleep(0.5)
    return found


def _written(folder: Path, name: str) -> dict[str, int]:
    """Bytes of side-cars, whole and not yet whole, and of their receipts."""
    found = {}
    for path in folder.glob(f"*.{name}.tar*"):
        with suppress(FileNotFoundError):  # it is whole by now, and has another name
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
    stream = _Views(source, shard, teacher, config, about.views)
    batches = loader(stream, config.data.workers, accelerator.device)
    dtype = getattr(torch, about.dtype)

    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        for chunk in batches:
            skipped.extend(chunk["skipped"])
            features = [_features(teacher, view, len(about.maps), dtype, accelerator) for view in chunk["views"]]
            for row, key in enumerate(chunk["key"]):
                yield (
                    key,
                    {
                        member(view): encode({name: x[row] for name, x in one.items()}, chunk["geometry"][view][row])
                        for view, one in enumerate(features)
                    },
                )

    path = source.folder / sidecar_name(shard.file, about.name)
    keep(path)
    return write_shard(path, samples())


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
    """All views of a shard's samples as the teacher sees them, in the order of the shard, CHUNK samples at a time."""

    def __init__(self, source: Source, shard: Shard, teacher: Network | Joint, config: Config, views: int) -> None:
        super().__init__()
        self.source, self.shard, self.views = replace(source, shards=(shard,)), shard, views
        # View v is what an uncached run would show in epoch v.
        draw = Draw(config.seed, config.data.crop, config.data.flip, config.data.pad)
        self.prepare = Prepare(self.source, {"teacher": teacher.view}, draw)

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        source, count = self.source, self.shard.samples
        raws = read_range(source.folder, [self.shard], 0, count, self.prepare.members, source.tolerant)
        chunk: list[Sample] = []
        try:
            for place, raw in enumerate(raws):
                if place // CHUNK % workers == worker:
                    chunk.append(raw)
                    if len(chunk) == CHUNK or place == count - 1:
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
    """One line for a person about a finished cache."""
    about = Cache.model_validate_json(path.read_bytes())
    size = sum(sidecar.bytes for sidecar in about.sidecars.values())
    samples = sum(sidecar.samples for sidecar in about.sidecars.values())
    kinds = json.dumps({"pooled": about.pooled, "maps": about.maps, "classes": len(about.classes or [])})
    return f"{path}: {samples} samples x {about.views} views, {about.dtype}, {kinds}, {size / 1e6:.1f} MB"
