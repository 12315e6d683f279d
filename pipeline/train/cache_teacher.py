"""Run the teacher once and write its features of all training samples to cached-feature shards."""

from __future__ import annotations

import json
import logging
import random
import time
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import torch
from accelerate import Accelerator

from losses import get as get_loss
from losses.base import Loss
from pipeline.common.errors import UserError
from pipeline.common.files import remove_stale_parts, write_atomic
from pipeline.config.settings import AUTO, Config
from pipeline.data.dataset import Shard
from pipeline.data.feature_cache import Cache, differences, manifest_path, sidecar_name
from pipeline.data.feature_journal import Journal
from pipeline.data.shard_reader import stamp, verify_shard
from pipeline.data.skipped import SKIPPED, append_skipped, counts, in_words
from pipeline.data.source import OpenDataset, Source
from pipeline.models.build import build_teacher, fingerprint
from pipeline.models.check_teacher import check_weights
from pipeline.models.network import Joint, Network
from pipeline.models.precision import precision_of
from pipeline.train.cache_shard import Job, write_features
from pipeline.train.launch import owned_by_all, start_accelerator
from pipeline.train.load_once import loaded_once, pin_teacher

log = logging.getLogger(__name__)


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
    config = pin_teacher(config, accelerator)
    data = OpenDataset.from_config(config, loaded_once(accelerator))
    teacher, source = build_teacher(config, data), data.split("train")
    assert teacher is not None
    teacher.eval().to(accelerator.device)
    about = describe_cache(config, teacher, data)
    whole = complete(Job(about, source, teacher, config, accelerator))
    accelerator.end_training()
    if accelerator.is_main_process:
        whole.check_faulty(source.samples, config.data.max_faulty)
    return manifest_path(source.folder, about.name)


def complete(job: Job) -> Cache:
    """Write the cached-feature shards that are missing, and the manifest. Call it on all ranks.

    Args:
        job: The cache. Features in journals are not computed again.

    Returns:
        The manifest.

    Raises:
        UserError: See `cache`.
    """
    from pipeline.common.progress import Progress  # which imports rich; a run without a cache needs neither

    about, source, accelerator, patience = job.about, job.source, job.accelerator, job.config.train.timeout
    filled = job.config.teacher is not None and job.config.teacher.fills_cache
    check_shared(source.folder, about.name, accelerator)
    own = list(source.shards[accelerator.process_index :: accelerator.num_processes])
    random.Random().shuffle(own)  # so jobs of a job array rarely compute the same shard
    # The jobs of a job array may write one cache together, since all of them write the same. Features that training
    # has computed differ in their last bits with the batch, so runs that fill the same cache complete it in turn.
    work = "" if filled else sha256(about.model_dump_json().encode()).hexdigest()
    with owned_by_all(accelerator, source.folder / about.name, work, patience / 2 if filled else 0.0):
        if filled:
            job = replace(job, journal=Journal(source.folder, about, source.shards))
        remove_stale_parts(source.folder)
        with Progress(f"caching {about.name}", sum(shard.samples for shard in own)) as progress:
            for shard in own:
                if _finished(source, shard, about) is None:
                    known = len(job.skipped)
                    sidecar = write_features(job, shard)
                    receipt = _with(about, shard, sidecar, sum(not s.unpaired for s in job.skipped[known:]))
                    write_atomic(_receipt(source, shard, about.name), receipt.model_dump_json().encode())
                progress.advance(shard.samples)
        whole = _gather(source, about, patience)
        if accelerator.is_main_process:
            _write_manifest(source, whole)
            if job.journal is not None:
                job.journal.remove()
    _list_skipped(job)
    return whole


def _list_skipped(job: Job) -> None:
    if job.skipped:
        listed = job.source.folder / f"{job.about.name}.{SKIPPED}"
        append_skipped(listed, job.skipped)
        log.warning(
            f"{len(job.skipped)} samples were skipped and have no features: {in_words(counts(job.skipped))}; listed in "
            f"{listed}"
        )


def describe_cache(config: Config, teacher: Network | Joint, data: OpenDataset) -> Cache:
    """Describe the cache of a config.

    Args:
        config: The config.
        teacher: Its teacher.
        data: Its dataset.

    Returns:
        The manifest, without cached-feature shards. With `teacher.cache: auto`, the name is made from everything that
        the features depend on except the shards, which are compared one by one.
    """
    assert config.teacher is not None
    assert config.teacher.cache is not None
    kinds: list[type[Loss]] = [get_loss(loss) for loss in config.losses]
    maps = any(kind.needs_maps for kind in kinds)
    about = Cache(
        name=config.teacher.cache,
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
    if not config.teacher.fills_cache:
        return about
    text = about.model_dump_json(exclude={"name": True, "licence": True, "fingerprint": {"shards"}})
    return about.model_copy(update={"name": f"{AUTO}-{sha256(text.encode()).hexdigest()[:12]}"})


def finished(source: Source, about: Cache) -> int:
    """Number of samples whose cached-feature shards are finished.

    Args:
        source: The split.
        about: The manifest, without cached-feature shards.
    """
    return sum(shard.samples for shard in source.shards if _finished(source, shard, about) is not None)


def _gather(source: Source, about: Cache, patience: float) -> Cache:
    """Wait for all cached-feature shards, and return the manifest of the cache."""
    found = {shard.file: _await(source, shard, about, patience) for shard in source.shards}
    sidecars = {file: sidecar for file, (sidecar, _) in found.items()}
    faulty = {file: count for file, (_, count) in found.items() if count}
    return about.model_copy(update={"sidecars": sidecars, "faulty": faulty})


def _write_manifest(source: Source, whole: Cache) -> None:
    """Write the manifest of the cache, which replaces the receipts."""
    write_atomic(manifest_path(source.folder, whole.name), whole.model_dump_json(indent=1).encode())
    for shard in source.shards:
        _receipt(source, shard, whole.name).unlink(missing_ok=True)


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


def check_shared(folder: Path, name: str, accelerator: Accelerator) -> None:
    """Check that all processes see the files that the first process writes to the dataset folder. Call it on all ranks.

    Args:
        folder: Local folder of the dataset.
        name: Name of the cache.
        accelerator: The accelerator.

    Raises:
        UserError: Some processes do not see them.
    """
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
                f"no progress for {patience:g} s (train.timeout). Run the same command again; finished shards are kept."
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


def describe(path: Path) -> str:
    """Describe a finished cache in one line. path: Path of its manifest."""
    about = Cache.model_validate_json(path.read_bytes())
    size = sum(sidecar.bytes for sidecar in about.sidecars.values())
    samples = sum(sidecar.samples for sidecar in about.sidecars.values())
    kinds = json.dumps({"pooled": about.pooled, "maps": about.maps, "classes": len(about.classes or [])})
    return f"{path}: {samples} samples x {about.views} views, {about.dtype}, {kinds}, {size / 1e6:.1f} MB"
