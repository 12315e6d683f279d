"""`teacher.cache: auto`: training fills the cache of the teacher's features while it reads each view the first time.

In the first `teacher.views` epochs, a batch takes the features that a journal contains, and the teacher is run on the
other samples; their features are appended to the journal of the process. Then the journals become cached-feature
shards, as `wcord cache` writes them, and training continues with these. The teacher is not run again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice

import torch
from accelerate import Accelerator
from torch import Tensor

from losses import Features
from pipeline.common.errors import UserError
from pipeline.common.flops import FlopCounter
from pipeline.common.hashing import digest
from pipeline.config.settings import Config
from pipeline.data.augmentation import Augmentation
from pipeline.data.feature_cache import Cache, decode, encode, open_cache
from pipeline.data.feature_journal import Journal, Record
from pipeline.data.manifest import verify_files
from pipeline.data.rows import take_rows
from pipeline.data.source import OpenDataset, Source
from pipeline.data.views import Batch
from pipeline.models.cached_teacher import CachedTeacher
from pipeline.models.check_teacher import check_finite, parts_of
from pipeline.models.distillation import Distillation, full_features
from pipeline.models.network import Joint, Network
from pipeline.train.cache_shard import Job, named
from pipeline.train.cache_teacher import check_shared, complete, describe_cache, finished
from pipeline.train.load_once import once
from pipeline.train.teacher_prefetch import teach_ahead, teach_now

log = logging.getLogger(__name__)


class Filling:
    """The cache that a run fills.

    Args:
        job: The cache.
        model: The model, whose teacher is replaced by the cache when it is complete.
        steps_per_epoch: Number of steps per epoch.
    """

    def __init__(self, job: Job, model: Distillation, steps_per_epoch: int) -> None:
        self.job, self.model, self.steps_per_epoch = job, model, steps_per_epoch
        self.journal = Journal(job.source.folder, job.about, job.source.shards)
        self.stored = CachedTeacher(job.about)
        self.augmentation = Augmentation.from_config(job.config)
        self.step = 0

    @property
    def steps(self) -> int:
        """Number of steps in which the run fills the cache."""
        return self.job.about.views * self.steps_per_epoch

    def batches(self, read: Callable[[Source, int], Iterator[Batch]], done: int, ahead: bool) -> Iterator[Batch]:
        """The training batches, with the teacher's features instead of its input.

        Args:
            read: Reads the batches of a split after a number of steps.
            done: Number of finished steps.
            ahead: Whether the teacher runs in a parallel thread.
        """
        self.step, steps, source = done, self.steps, self.job.source
        if done < steps:
            log.info(
                f"teacher.cache: the teacher is run on {source.samples} samples x {self.job.about.views} views up to "
                f"step {steps}; its features are stored in {source.folder} as {self.job.about.name}"
            )
            taught = teach_ahead if ahead else teach_now
            yield from taught(islice(read(source, done), steps - done), self, self.job.accelerator)
        cache = self.complete()
        following = read(replace(source, cache=cache), max(done, steps))
        yield next(following) | {"counted": FlopCounter()}
        yield from following

    @torch.no_grad()
    def teach(self, batch: Batch) -> Features:
        """The features of the next batch; those that are new are stored."""
        view = self.step // self.steps_per_epoch
        self.step += 1
        known = [self.journal.load(view, index) for index in batch["index"].tolist()]
        new = [row for row, record in enumerate(known) if record is None]
        found = self._computed(batch, view, new) if new else {}
        if len(new) < len(known):
            device = self.job.accelerator.device
            loaded = [decode(record.features)[0] for record in known if record is not None]
            stored = {name: torch.stack([x[name] for x in loaded]).to(device) for name in loaded[0]}
            found = {name: _interleaved(x, found.get(name), new) for name, x in stored.items()}
        return full_features(self.stored(found))

    def _computed(self, batch: Batch, view: int, rows: list[int]) -> dict[str, Tensor]:
        """Run the teacher on some samples of a batch and store its features, in the data type of the cache."""
        about, x = self.job.about, batch["teacher"]
        features = self.model.features(self.job.teacher, x if len(rows) == len(batch["key"]) else take_rows(x, rows))
        found = {k: v.to(getattr(torch, about.dtype)) for k, v in named(features, len(about.maps)).items()}
        keys, index = batch["key"], batch["index"].tolist()
        paired = batch["paired"].tolist() if "paired" in batch else [True] * len(keys)
        own = {name: value.cpu() for name, value in found.items()}
        self._check(own, torch.tensor([paired[row] for row in rows]), [keys[row] for row in rows])
        records: dict[int, Record] = {}  # a sample that replaces an unusable one occurs twice
        for place, row in enumerate(rows):
            if paired[row]:
                geometry = self.augmentation.geometry(view, digest(keys[row]))
                features_of_row = encode({name: value[place] for name, value in own.items()}, geometry)
                records[index[row]] = Record(index[row], keys[row], features_of_row)
        self.journal.append(view, records.values())
        return found

    def _check(self, found: dict[str, Tensor], paired: Tensor, keys: list[str]) -> None:
        """Check that the features to store are finite. The error message contains the samples."""
        try:
            check_finite(full_features(self.stored(found)), parts_of(self.job.teacher), paired)
        except UserError as error:
            raise UserError(f"samples {keys[0]} to {keys[-1]}: {error} These features were not stored.") from None

    def complete(self) -> Cache:
        """Write what is missing of the cache, and replace the teacher of the model by it. Call it on all ranks."""
        self.job.teacher.to(self.job.accelerator.device)
        cache = complete(self.job)
        cache.check_faulty(self.job.source.samples, self.job.config.data.max_faulty)
        self.model.teacher = CachedTeacher(cache)
        log.info(f"teacher.cache: {cache.name} is complete; the teacher is not run any more")
        del self.job, self.journal  # they hold the teacher and 12 bytes per sample and view
        return cache


def _interleaved(known: Tensor, computed: Tensor | None, new: list[int]) -> Tensor:
    """The rows of a batch: `computed` at the places `new`, and `known` at the others."""
    if computed is None:
        return known
    whole = known.new_empty(len(known) + len(new), *known.shape[1:])
    rest = torch.ones(len(whole), dtype=torch.bool, device=known.device)
    rest[new] = False
    whole[rest], whole[~rest] = known, computed
    return whole


def open_filling(
    config: Config,
    dataset: OpenDataset,
    source: Source,
    model: Distillation,
    steps_per_epoch: int,
    accelerator: Accelerator,
) -> Filling | None:
    """Open the cache of `teacher.cache: auto`. If it is complete, or nearly so, the model gets it as its teacher.

    Args:
        config: The config.
        dataset: Its dataset.
        source: The training split.
        model: The model.
        steps_per_epoch: Number of steps per epoch.
        accelerator: The accelerator.

    Returns:
        The cache that the run fills; None if there is none, or it is complete.

    Raises:
        UserError: The cache cannot be filled.
    """
    if config.teacher is None or not config.teacher.fills_cache:
        return None
    teacher = model.teacher
    assert isinstance(teacher, (Network, Joint))
    job = Job(describe_cache(config, teacher, dataset), source, teacher, config, accelerator)
    filling = Filling(job, model, steps_per_epoch)
    found = once(accelerator, lambda: _found(job, filling.journal))
    if isinstance(found, Cache):
        found.check_faulty(source.samples, config.data.max_faulty)
        model.teacher = CachedTeacher(found)
        return None
    if accelerator.is_fsdp2:
        raise UserError(
            "teacher.cache: auto cannot be filled with FSDP, which runs the sharded teacher only within a training "
            "step. Run `wcord cache` with the same config first, without FSDP; this run then reads that cache."
        )
    check_shared(source.folder, job.about.name, accelerator)  # now, not after the first epoch
    if found:
        filling.complete()
        return None
    return filling


def _found(job: Job, journal: Journal) -> Cache | bool:
    """The cache; or else whether it is so nearly complete that it is completed before the first step."""
    about, source = job.about, job.source
    with suppress(UserError):
        cache = open_cache(source.folder, about.name, about.fingerprint)
        if not job.config.data.max_faulty:
            verify_files(source.folder, cache.sidecars.values(), "wcord cache")
        return cache
    few = journal.missing() < about.views * job.config.data.batch_size  # an epoch leaves out less than a batch
    return few or 2 * finished(source, about) >= source.samples
