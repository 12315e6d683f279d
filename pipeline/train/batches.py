"""The training batches of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from accelerate import Accelerator

from pipeline.config.settings import Config
from pipeline.data.augmentation import Augmentation
from pipeline.data.in_memory import InMemory
from pipeline.data.mixture import MixedStream, Mixture
from pipeline.data.source import Source
from pipeline.data.stream import TrainStream, loader
from pipeline.data.views import Batch, ViewSpec
from pipeline.train.coverage import watch_coverage
from pipeline.train.plain_data import PlainData
from pipeline.train.profiler import Profile
from pipeline.train.state import Training
from pipeline.train.teacher_prefetch import pays, teach_ahead


def open_batches(training: Training, done: int, profile: bool) -> tuple[Iterator[Batch], Profile | None]:
    """Open the training batches.

    Args:
        training: The run.
        done: Number of finished steps.
        profile: Whether to profile the first steps.

    Returns:
        The batches after step `done`, and the profile, if any. Without a profile, the teacher may run in a parallel
        thread.
    """
    config, accelerator, distillation = training.config, training.accelerator, training.distillation
    source = training.source
    if isinstance(source, PlainData):
        return source.read(done, accelerator), None
    # Validation starts processes, which must not be forked while another thread holds locks.
    ahead = pays(distillation, accelerator) and not (profile or config.train.compile or training.held_out)

    def read(source: Source | Mixture, start: int) -> Iterator[Batch]:
        batches = training_batches(config, source, distillation.views, start, accelerator)
        return watch_coverage(batches, distillation.views) if accelerator.is_main_process else batches

    if training.filling is not None:
        batches = training.filling.batches(read, done, ahead)
    elif ahead:
        batches = teach_ahead(read(source, done), distillation, accelerator)
    else:
        batches = read(source, done)
    if profile and accelerator.is_main_process:
        profiled = Profile(training.run, distillation, training.optimizer.optimizer)
        return profiled.watch(batches), profiled
    return batches, None


def training_batches(
    config: Config, source: Source | Mixture, views: Mapping[str, ViewSpec], start: int, accelerator: Accelerator
) -> Iterator[Batch]:
    """Read the batches of this rank from shards or from memory.

    Args:
        config: The config.
        source: The training split, or a mixture.
        views: Role -> the views that it reads from a sample.
        start: Number of finished steps.
        accelerator: The accelerator.
    """
    data, ranks, rank = config.data, accelerator.num_processes, accelerator.process_index
    augmentation = Augmentation.from_config(config)
    share = {"batch": data.batch_size // ranks, "ranks": ranks, "rank": rank, "start": start}
    if isinstance(source, Mixture):
        mixed = MixedStream(source, views, augmentation, **share, shuffle=data.shuffle)
        return loader(mixed, data.workers, accelerator.device, timeout=config.train.timeout)
    if data.in_memory:
        return iter(InMemory(source, views, augmentation, **share, workers=data.workers, device=accelerator.device))
    stream = TrainStream(source, views, augmentation, **share, shuffle=data.shuffle)
    return loader(stream, data.workers, accelerator.device, timeout=config.train.timeout)
