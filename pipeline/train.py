"""The training loop, the same for a teacher, a compressed student and a student of another modality."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed.nn  # its default arguments keep the process group for good if it is imported after the group
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import broadcast_object_list
from torch import nn

from pipeline.ahead import pays, teach_ahead
from pipeline.checkpoint import BEST, keep_best
from pipeline.config import Config
from pipeline.draw import Draw
from pipeline.errors import UserError
from pipeline.gradient_checkpointing import checkpoint_gradients
from pipeline.host import garbage_of_steps_only, keep_freed_memory
from pipeline.in_memory import InMemory
from pipeline.launch import in_brief, lost, start_accelerator
from pipeline.log import Log
from pipeline.masks import confusion, scores
from pipeline.model import Distillation, build_model
from pipeline.network import Joint, Network, load_network, save_network
from pipeline.nonfinite import NonFinite
from pipeline.prepare import Batch, Sight, labelled
from pipeline.profile import Profile
from pipeline.resume import average_buffers, go_on, identity_of, save
from pipeline.run_folder import RESULTS, WRITTEN, claim, clear, write_config
from pipeline.runs import read_log
from pipeline.schedule import Schedule
from pipeline.sharding import average_gradients, plain_student, prepare_sharding, whole
from pipeline.skipped import SKIPPED, Ledger, Skipped, counts, in_words
from pipeline.source import Policy, Source, check_split, open_split
from pipeline.stopping import Stop, Stopped
from pipeline.stream import EvalStream, TrainStream, loader, steps_per_epoch, worker_died
from pipeline.trackers import check_trackers


def train(config: Config, resume: bool = False, overwrite: bool = False, profile: bool = False) -> Path:
    """Train what a config describes and return its run folder.

    resume: go on from the newest checkpoint, if there is one. overwrite: remove an earlier run of the same name.
    profile: say what some of the first steps spend their time on, and write a trace of them.
    Raises UserError for everything that a person can mend, before anything heavy starts where that can be known, and
    Stopped after SIGTERM or SIGINT, when a checkpoint has been written.
    """
    keep_freed_memory()
    accelerator = start_accelerator(config)
    run, stopped = Path(config.run), None
    with Stop().listening() as stop, garbage_of_steps_only():
        try:
            _train(config, accelerator, resume, overwrite, profile, stop)
        except Stopped as asked:
            stopped = asked.with_traceback(None)  # which would hold the model
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the GPU's memory is full: set train.micro_batch to a part of the batch (the losses see all of it), "
                f"train.gradient_checkpointing=true, or lower data.batch_size. ({str(error).splitlines()[0]})"
            ) from None
        except RuntimeError as error:
            if (died := worker_died(error)) is not None:
                raise died from None
            if not lost(error):
                raise
            raise UserError(
                f"another process ended, or did not answer for {config.train.timeout:g} s (train.timeout); its own "
                f"message says why. Go on with --resume. ({in_brief(error)})"
            ) from None
    # The process group's threads end with it, and it with the models that hold it. One that is alive when Python
    # finalises aborts the process, and the launcher then kills the other ranks.
    accelerator.free_memory()
    accelerator.end_training()
    if stopped is not None:
        raise stopped
    return run


@dataclass(frozen=True)
class _Training:
    """A run that is ready for its next step.

    held_out: the split that is checked on now and then, if any. model: the distillation as the launcher wraps it.
    spare: what takes the student's whole weights where they are cut. identity: of its checkpoints.
    """

    config: Config
    accelerator: Accelerator
    source: Source
    held_out: Source | None
    schedule: Schedule
    distillation: Distillation
    spare: Network | Joint | None
    model: nn.Module
    optimizer: AcceleratedOptimizer
    identity: dict[str, Any]

    @property
    def run(self) -> Path:
        return Path(self.config.run)

    def student(self) -> Network | Joint:
        """With whole weights; called by all ranks."""
        return plain_student(self.distillation, self.spare)


def _train(config: Config, accelerator: Accelerator, resume: bool, overwrite: bool, profile: bool, stop: Stop) -> None:
    run = Path(config.run)
    claim(run, resume, overwrite)
    check_trackers(config.train.trackers)
    training = _set_up(config, accelerator)
    distillation, optimizer, identity = training.distillation, training.optimizer, training.identity
    done = go_on(config, distillation, optimizer, identity, accelerator) if resume else 0
    if done >= training.schedule.steps:
        student = training.student()
        if accelerator.is_main_process and not _is_whole(run / "student"):
            save_network(student, run / "student")
        accelerator.print(f"{run}: already trained for {done} steps; nothing to do.")
        return
    accelerator.wait_for_everyone()  # nobody may delete before all have looked
    if accelerator.is_main_process:
        clear(run, RESULTS if done else WRITTEN)
        write_config(config, run)
    accelerator.print(f"{run}: training on {accelerator.num_processes} x {accelerator.device.type}", flush=True)
    _take_steps(training, done, profile, stop)
    student = training.student()
    if accelerator.is_main_process:
        save_network(student, run / "student")
    accelerator.print(f"{run}: done. The student is in {run / 'student'}; next: wcord evaluate {run}")


def _is_whole(folder: Path) -> bool:
    """Whether a network can be loaded from there: the process that wrote it may have been killed, or the disk full."""
    try:
        load_network(folder)
    except (UserError, OSError):
        return False
    return True


def _set_up(config: Config, accelerator: Accelerator) -> _Training:
    """Data, networks, losses and optimiser, as the config says; the cheapest checks come first."""
    data = config.data
    policy = Policy(data.max_faulty, data.unpaired)
    check_split(data.shards, config.evaluation.split, "evaluation.split: ")
    source = open_split(data.shards, "train", data.label, data.labels, config.seed, policy, data.join)
    checked = config.evaluation.split if config.evaluation.every else None
    schedule = Schedule(config.train, steps_per_epoch(source, data.batch_size))
    held_out = open_split(data.shards, checked, data.label, policy=policy, join=data.join) if checked else None
    if held_out is not None and not labelled(held_out):
        raise UserError(_unlabelled(held_out))

    distillation = build_model(config)
    if held_out is not None and distillation.student.classes is None:
        raise UserError(
            "evaluation.every: no loss trains class scores of the student, so there is nothing to be right about; set "
            "it to 0, or add cross_entropy or kd."
        )
    source = replace(source, cache=distillation.cache)
    identity = identity_of(config, distillation)
    spare = prepare_sharding(distillation, config, accelerator)
    if config.train.gradient_checkpointing:
        checkpoint_gradients(distillation.student)
    if config.train.compile:
        distillation.compile_parts(accelerator.device)
    model, optimizer = accelerator.prepare(distillation, build_optimizer(distillation, config))
    return _Training(config, accelerator, source, held_out, schedule, distillation, spare, model, optimizer, identity)


def _take_steps(training: _Training, done: int, profile: bool, stop: Stop) -> None:
    """Take the steps after `done`, with logs, checks and checkpoints; Stopped once one is written because of `stop`."""
    config, accelerator, run, schedule = training.config, training.accelerator, training.run, training.schedule
    distillation, model, optimizer = training.distillation, training.model, training.optimizer
    batches, profiled = _batches(training, done, profile)
    ledger = Ledger(run / SKIPPED, training.source.samples, config.data.max_faulty)
    finite = NonFinite(distillation, run, accelerator.process_index)
    log = Log(config, run, done, schedule, accelerator)
    if _left_out(training, done):
        _check_held_out(training, done, log)
    for step in range(done + 1, schedule.steps + 1):
        batch = log.waiting(batches)
        ledger.add(batch.pop("skipped"))
        # Randomness inside the networks is a function of the step, so a resumed run draws the same.
        torch.manual_seed(hash((config.seed, step, accelerator.process_index)))
        rate = schedule.learning_rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        finite.begin()
        with accelerator.autocast():
            loss, terms = model(batch)
        accelerator.backward(loss)
        if training.spare is not None:
            average_gradients(distillation, accelerator)
        finite.watch(accelerator)
        norm = whole(accelerator.clip_grad_norm_(model.parameters(), config.train.clip or math.inf))
        skipped = finite.skips(step, batch, terms, norm)
        if not skipped or accelerator.scaler is not None:  # which skips by itself, and lowers its scale
            optimizer.step()
        optimizer.zero_grad()

        last = step == schedule.steps
        stopping = stop.asked(accelerator)
        if not skipped:
            log.add(loss, terms, batch)
        if step % config.train.log_every == 0 or last or stopping:  # what is not in a line by then, no line tells
            ledger.share(accelerator)
            log.write(step, rate, norm, distillation, ledger.counts(), finite.steps)
        stopping = stopping and not last
        check_due = training.held_out is not None and (step % config.evaluation.every == 0 or last)
        if check_due and not stopping:  # who asks to stop may not wait for it
            _check_held_out(training, step, log)
        checkpoint_due = step % config.train.checkpoint_every == 0 and finite.row == 0
        if checkpoint_due or last or stopping:
            ledger.share(accelerator)
            save(run, step, distillation, optimizer, training.identity, config, accelerator)
        if stopping:
            accelerator.wait_for_everyone()
            log.close()
            raise Stopped(
                f"{run}: stopped at step {step} as asked; go on with --resume.", stop.number or signal.SIGTERM
            )
    if profiled:
        profiled.close()
    log.close()


def _batches(training: _Training, done: int, profile: bool) -> tuple[Iterator[Batch], Profile | None]:
    """The batches from step `done` on, and what watches them, if anything does; else the teacher may run ahead."""
    config, accelerator, distillation = training.config, training.accelerator, training.distillation
    batches = training_batches(config, training.source, distillation.views, done, accelerator)
    if profile and accelerator.is_main_process:
        profiled = Profile(training.run, distillation, training.optimizer.optimizer)
        return profiled.watch(batches), profiled
    if pays(distillation, accelerator) and not config.train.compile and not training.held_out:
        # A check on held-out samples starts processes, which must not be forked while another thread holds locks.
        batches = teach_ahead(batches, distillation, accelerator)
    return batches, None


def _left_out(training: _Training, step: int) -> bool:
    """Whether the step that the run goes on from lacks its check, since the run was asked to stop there."""
    if training.held_out is None or step == 0 or step % training.config.evaluation.every:
        return False
    found = read_log(training.run / "metrics.jsonl", []).get(step, {})
    missing = [not any(name.startswith("held_out/") for name in found)]
    return bool(broadcast_object_list(missing)[0])  # only the first process may see the run folder


def _check_held_out(training: _Training, step: int, log: Log) -> None:
    """Log how good the student is now, and keep it if it is the best so far."""
    assert training.held_out is not None
    average_buffers(training.distillation, training.accelerator)
    student = training.student()
    metric, value = held_out_score(student, training.held_out, training.config, training.accelerator)
    log.scalars(step, {f"held_out/{metric}": value})
    if training.accelerator.is_main_process:
        keep_best(student, training.run / BEST, step, metric, value)


def training_batches(
    config: Config, source: Source, views: Mapping[str, Sight], start: int, accelerator: Accelerator
) -> Iterator[Batch]:
    """This rank's batches from step `start` on, out of the shards or out of memory."""
    data, ranks, rank = config.data, accelerator.num_processes, accelerator.process_index
    share = {"batch": data.batch_size // ranks, "ranks": ranks, "rank": rank, "start": start}
    if data.in_memory:
        draw = Draw(config.seed, data.crop, data.flip, data.pad)
        return iter(InMemory(source, views, draw, **share, workers=data.workers, device=accelerator.device))
    stream = TrainStream(
        source,
        views,
        **share,
        seed=config.seed,
        shuffle=data.shuffle,
        crop=data.crop,
        flip=data.flip,
        pad=data.pad,
    )
    return loader(stream, data.workers, accelerator.device)


def build_optimizer(model: Distillation, config: Config) -> torch.optim.Optimizer:
    """AdamW, or SGD with momentum 0.9; vectors and scalars (biases, norms, temperatures) are decayed if asked for."""
    groups, decay = [], config.train.weight_decay
    for part in (model.student, model.losses):  # apart, for FSDP cuts the one and not the other
        trained = [p for p in part.parameters() if p.requires_grad]
        matrices, vectors = ([p for p in trained if (p.ndim > 1) == matrix] for matrix in (True, False))
        groups += [
            {"params": matrices, "weight_decay": decay},
            {"params": vectors, "weight_decay": decay * config.train.decay_vectors},
        ]
    groups = [group for group in groups if group["params"]]
    if config.train.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.train.learning_rate, momentum=0.9)
    return torch.optim.AdamW(groups, lr=config.train.learning_rate, fused=True)


@torch.no_grad()
def held_out_score(
    student: Network | Joint, source: Source, config: Config, accelerator: Accelerator
) -> tuple[str, float]:
    """`top1`, or `mIoU` of masks, of the student on a whole split, shared by all ranks; 0 to 1."""
    views = {"student": student.view}
    ranks, rank = accelerator.num_processes, accelerator.process_index
    stream = EvalStream(source, views, batch=64 if source.mask else 256, ranks=ranks, rank=rank)
    tally = torch.zeros(source.classes, source.classes, device=accelerator.device, dtype=torch.int64)
    student.eval()
    passed_over: list[Skipped] = []
    for batch in loader(stream, config.data.workers, accelerator.device, passed_over):
        passed_over += batch["skipped"]
        with accelerator.autocast():
            logits = student(batch["student"]).logits
        assert logits is not None  # or the run would not have started
        tally += confusion(logits.argmax(1), batch["mask" if source.mask else "label"], source.classes)
    student.train()
    tally = accelerator.reduce(tally, "sum")
    if passed_over:
        found = in_words(counts(passed_over))
        print(f"evaluation.every: {len(passed_over)} samples could not be used ({found})", flush=True)
    if not tally.any():
        raise UserError(_unlabelled(source))
    if source.mask:
        return "mIoU", scores(tally, list(map(str, range(source.classes))))["mIoU"]
    return "top1", tally.trace().item() / tally.sum().item()


def _unlabelled(source: Source) -> str:
    return (
        f"evaluation.every: no sample of evaluation.split in {source.folder} has a label that can be used, so there is "
        "nothing to be right about; set it to 0."
    )
