"""The training loop, the same for supervised training, compression and cross-modal distillation."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed.nn  # before the process group exists: else its default arguments keep the group alive forever
from accelerate import Accelerator

from pipeline.common.console import log_to_console_by_default, rank
from pipeline.common.errors import UserError
from pipeline.common.host import garbage_of_steps_only, keep_freed_memory
from pipeline.config.settings import Config
from pipeline.data.mixture import Mixture, SourceCounts, open_mixture
from pipeline.data.skipped import SKIPPED, Ledger
from pipeline.data.source import OpenDataset, Source
from pipeline.data.stream import steps_per_epoch, worker_died
from pipeline.models.build import build_model
from pipeline.models.check_inputs import check_inputs
from pipeline.models.check_teacher import check_first_batch, check_weights, warn_of_random_student
from pipeline.models.distillation import Distillation
from pipeline.models.network import load_network, save_network
from pipeline.runs.checkpoint import Checkpoint
from pipeline.runs.folder import RESULTS, WRITTEN, claim, clear, write_config
from pipeline.runs.trackers import check_trackers
from pipeline.train.accumulate import check_accumulation
from pipeline.train.activation_checkpointing import checkpoint_gradients
from pipeline.train.batches import open_batches
from pipeline.train.callbacks import Callback
from pipeline.train.callbacks.events import Callbacks, build_callbacks
from pipeline.train.fill_cache import Filling, open_filling
from pipeline.train.fsdp import prepare_sharding
from pipeline.train.guard import Guard
from pipeline.train.held_out import HeldOut, open_held_out
from pipeline.train.label_count import say_labels
from pipeline.train.launch import in_brief, lost, owned_by_all, start_accelerator
from pipeline.train.list_pairs import list_pairs
from pipeline.train.load_once import loaded_once, once, pin_teacher
from pipeline.train.metrics_log import Log
from pipeline.train.nonfinite import NonFinite
from pipeline.train.optimizer import build_optimizer, record_learning_rates
from pipeline.train.plain_data import PlainData
from pipeline.train.resume import identity_of, restore, say_changes
from pipeline.train.schedule import Schedule
from pipeline.train.signals import Stop, Stopped
from pipeline.train.state import Training
from pipeline.train.step import Records, after_step, train_step, validate
from pipeline.train.validation import check_missing

log = logging.getLogger(__name__)


def train(
    config: Config,
    resume: bool = False,
    overwrite: bool = False,
    profile: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Path:
    """Train a model.

    Progress is logged, and printed unless the user has configured logging; see `log_to_console_by_default`.

    Args:
        config: What to train.
        resume: Resume from the newest checkpoint, if there is one.
        overwrite: Delete an earlier run in the same folder.
        profile: Report a time breakdown of some of the first steps, and write a trace.
        callbacks: Called during training, after those of `train.callbacks`.

    Returns:
        The run folder.

    Raises:
        UserError: A problem that the user can fix. If possible, it is raised before any expensive work.
        Stopped: The run received SIGTERM or SIGINT. A checkpoint has been written.
    """

    def set_up(accelerator: Accelerator, own: Callbacks) -> tuple[Training, str]:
        check_weights(config)
        if accelerator.is_main_process:
            warn_of_random_student(config)
        fixed = pin_teacher(config, accelerator)
        dataset = OpenDataset.from_config(fixed, loaded_once(accelerator))
        about = f"data {dataset.manifest.name}: {dataset.manifest.samples('train')} training samples"
        return _set_up(fixed, dataset, accelerator, own), about

    return run_training(config, set_up, callbacks, resume, overwrite, profile)


SetUp = Callable[[Accelerator, Callbacks], tuple[Training, str]]
"""Builds data, networks, losses and optimiser, and a one-line description of the data."""


def run_training(
    config: Config,
    set_up: SetUp,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    overwrite: bool = False,
    profile: bool = False,
    finish: Callable[[Training], None] | None = None,
) -> Path:
    """Train with the parts that `set_up` builds; see `train`.

    Args:
        config: The config.
        set_up: Builds data, networks, losses and optimiser; see `SetUp`.
        callbacks: Called during training, after those of `train.callbacks`.
        resume: Resume from the newest checkpoint, if there is one.
        overwrite: Delete an earlier run in the same folder.
        profile: Report a time breakdown of some of the first steps, and write a trace.
        finish: Called with the trained student.
    """
    log_to_console_by_default()
    keep_freed_memory()
    accelerator = start_accelerator(config)
    run, stopped = Path(config.run), None
    with Stop().listening() as stop:
        try:
            with owned_by_all(accelerator, run):
                _train(config, accelerator, resume, overwrite, profile, callbacks, stop, set_up, finish)
        except Stopped as asked:
            stopped = asked.with_traceback(None)  # the traceback would keep the model in memory
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"out of GPU memory: set train.micro_batch below the batch size (losses still get the whole batch), "
                f"set train.gradient_checkpointing=true, or lower data.batch_size. ({str(error).splitlines()[0]})"
            ) from None
        except RuntimeError as error:
            if (died := worker_died(error)) is not None:
                raise died from None
            if not lost(error):
                raise
            raise UserError(
                f"another process failed, or did not respond for {config.train.timeout:g} s (train.timeout); see its "
                f"error message, then run with --resume. ({in_brief(error)})"
            ) from None
        # The threads of the process group end when the models that refer to it are freed. A thread that is still alive
        # when Python finalises aborts the process, and the launcher then kills the other ranks.
        accelerator.free_memory()
    accelerator.end_training()
    if stopped is not None:
        raise stopped
    return run


def _train(
    config: Config,
    accelerator: Accelerator,
    resume: bool,
    overwrite: bool,
    profile: bool,
    own: Sequence[Callback],
    stop: Stop,
    set_up: SetUp,
    finish: Callable[[Training], None] | None,
) -> None:
    run = Path(config.run)
    claim(run, resume, overwrite)
    check_trackers(config.train.trackers)
    callbacks = build_callbacks(config, own)
    training, about = set_up(accelerator, callbacks)
    checkpoint = restore(training) if resume else None
    done = checkpoint.step if checkpoint else 0
    if (ended := _has_ended(training, checkpoint)) is not None:
        student = training.student()
        if accelerator.is_main_process and not _is_whole(run / "student"):
            save_network(student, run / "student")
        log.info(f"{run}: {ended}; nothing to do.")
        return
    accelerator.wait_for_everyone()  # no rank may delete files before all ranks have read them
    if accelerator.is_main_process:
        if done:
            say_changes(training, done)
        clear(run, RESULTS if done else WRITTEN)
        write_config(training.config, run, about)  # with the commits of teachers from the Hub
    log.info(f"{run}: training on {accelerator.num_processes} x {accelerator.device.type}")
    if accelerator.is_main_process:
        record_learning_rates(training.distillation, config, run)
    callbacks.call("on_start", training, done)
    if checkpoint is not None:
        callbacks.load_state_dict(checkpoint.callbacks, accelerator.is_main_process)
    with garbage_of_steps_only():
        last = _run_steps(training, done, profile, stop)
    student = training.student()
    if accelerator.is_main_process:
        save_network(student, run / "student")
        if (pair_filter := training.distillation.pair_filter) and not isinstance(training.source, PlainData):
            list_pairs(run, pair_filter, training.source)
    if finish is not None:
        finish(training)
    callbacks.call("on_end", training, last)
    following = "" if isinstance(training.source, PlainData) else f"; next: wcord evaluate {run}"
    log.info(f"{run}: done. The student is in {run / 'student'}{following}")


def _has_ended(training: Training, checkpoint: Checkpoint | None) -> str | None:
    """Why there is nothing to resume: all steps are done, or a callback that is still configured ended the run."""
    if checkpoint is None:
        return None
    for name, reason in checkpoint.stopped.items():
        if name in training.callbacks.named:
            return f"ended at step {checkpoint.step} by {name} ({reason}); to resume, remove it"
    return f"already trained for {checkpoint.step} steps" if checkpoint.step >= training.schedule.steps else None


def _is_whole(folder: Path) -> bool:
    """Whether a network can be loaded. If not, its writer may have been killed, or the disk may have been full."""
    try:
        load_network(folder)
    except (UserError, OSError):
        return False
    return True


def check_evaluation_split(config: Config, dataset: OpenDataset) -> None:
    """Check the split for evaluation. A warning is logged if `best/` is selected on the test split.

    Foreign shards may all be training shards. In this case, a message states that evaluation will not be possible.

    Args:
        config: The config.
        dataset: The dataset.

    Raises:
        UserError: The split is missing, although validation needs it or the dataset is packed.
    """
    split = config.evaluation.split
    if dataset.manifest.extensions and not dataset.manifest.samples(split) and not config.evaluation.every:
        log.info(
            f"{dataset.folder}: all samples are used for training; the split `{split}` (evaluation.split) is empty. To "
            f"hold out samples: wcord index SHARDS --out FOLDER --split {split}=0.02, then data.shards=FOLDER."
        )
    else:
        dataset.check_split(split, "evaluation.split: ")
    if config.evaluation.every and split == "test" and rank() == 0:
        log.warning(
            "evaluation.every: best/ is selected on the test split, so its test results are optimistically biased. Set "
            "evaluation.split to a validation split, e.g. evaluation.split=val after packing with --val 0.1."
        )


def _set_up(config: Config, dataset: OpenDataset, accelerator: Accelerator, callbacks: Callbacks) -> Training:
    """Build data, networks, losses and optimiser. The cheapest checks come first."""
    check_evaluation_split(config, dataset)
    mixture = open_mixture(config, dataset, loaded_once(accelerator)) if config.data.mixed else None
    for each in mixture.datasets if mixture else [dataset]:
        check_inputs(config, each)
    source = mixture.sources[0] if mixture else dataset.split("train", config.data.label_fraction, config.seed)
    once(accelerator, lambda: say_labels(config, mixture.sources if mixture else [source]))
    batch = config.data.batch_size
    epoch = mixture.steps_per_epoch(batch) if mixture else steps_per_epoch(source, batch)
    schedule = Schedule(config.train, epoch, config.losses)
    distillation = build_model(config, dataset, (mixture or source).samples)
    filling = open_filling(config, dataset, source, distillation, epoch, accelerator)
    held_out = open_held_out(config, dataset, source, distillation, accelerator)
    if distillation.cache:  # a cache belongs to a single dataset
        source = replace(source, cache=distillation.cache)
        mixture = mixture and replace(mixture, sources=(source,))
    identity = identity_of(config, distillation, dataset, mixture)
    data = mixture or source
    return assemble(config, accelerator, callbacks, data, held_out, schedule, distillation, identity, filling)


def assemble(
    config: Config,
    accelerator: Accelerator,
    callbacks: Callbacks,
    source: Source | Mixture | PlainData,
    held_out: HeldOut | None,
    schedule: Schedule,
    distillation: Distillation,
    identity: dict[str, Any],
    filling: Filling | None = None,
) -> Training:
    """Check and prepare the model, and build the optimiser. For the arguments, see `Training`."""
    check_accumulation(distillation, config, accelerator.num_processes)
    spare = prepare_sharding(distillation, config, accelerator)
    if config.train.gradient_checkpointing:
        checkpoint_gradients(distillation.student)
    if config.train.compile:
        distillation.compile_parts(accelerator.device)
    optimizer = build_optimizer(distillation, config)
    # Without `device_placement`, Accelerate would import torch.distributed.tensor to find out. FSDP ignores it.
    model, optimizer = accelerator.prepare(distillation, optimizer, device_placement=[True, True])
    return Training(
        config,
        accelerator,
        source,
        held_out,
        schedule,
        distillation,
        spare,
        model,
        optimizer,
        Guard(distillation, config, schedule.steps),
        identity,
        callbacks,
        filling,
    )


def _source_counts(training: Training) -> SourceCounts | None:
    """The counter of samples per source of a mixture."""
    mixture, config, ranks = training.source, training.config, training.accelerator.num_processes
    if not isinstance(mixture, Mixture):
        return None
    return SourceCounts(mixture, config.seed, config.data.batch_size // ranks, ranks)


def _run_steps(training: Training, done: int, profile: bool, stop: Stop) -> int:
    """Run the steps after `done`, and return the number of the last one.

    Raises:
        Stopped: A signal stopped the run. A checkpoint has been written.
    """
    config, accelerator, run = training.config, training.accelerator, training.run
    batches, profiled = open_batches(training, done, profile)
    log = Log(config, run, done, training.schedule, accelerator)
    ledger = Ledger(run / SKIPPED, training.source.samples, config.data.max_faulty)
    sources = _source_counts(training)
    records = Records(log, ledger, NonFinite(training.distillation, run, accelerator.process_index), sources)
    if check_missing(training, done):
        validate(training, records, done)
    for step in range(done + 1, training.schedule.steps + 1):
        batch = log.waiting(batches)
        if step == 1:
            check_first_batch(training.distillation, batch, accelerator)
        ledger.add(batch.pop("skipped"))
        result = train_step(training, records, step, batch)
        stopping = stop.asked(accelerator) and step < training.schedule.steps
        if after_step(training, records, step, batch, result, stopping):
            break
        if stopping:
            accelerator.wait_for_everyone()
            log.close()
            raise Stopped(
                f"{run}: stopped at step {step} by a signal; continue with --resume.", stop.number or signal.SIGTERM
            )
    if profiled:
        profiled.close()
    log.close()
    training.callbacks.say_why()
    return step
