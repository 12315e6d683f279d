"""The training loop, the same for a teacher, a compressed student and a student of another modality."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed.nn  # its default arguments keep the process group for good if it is imported after the group
from accelerate import Accelerator
from torch.distributed import DistBackendError
from torch.distributed.tensor import DTensor

from pipeline.ahead import pays, teach_ahead
from pipeline.checkpoint import BEST, Checkpoint, keep_best, newest_checkpoint, save_checkpoint, set_aside
from pipeline.config import Config
from pipeline.draw import Draw
from pipeline.errors import UserError
from pipeline.gradient_checkpointing import checkpoint_gradients
from pipeline.host import garbage_of_steps_only, keep_freed_memory
from pipeline.in_memory import InMemory
from pipeline.launch import start_accelerator
from pipeline.log import Log
from pipeline.masks import confusion, scores
from pipeline.model import Distillation, build_model
from pipeline.network import DESCRIPTION, Joint, Network, save_network
from pipeline.nonfinite import NonFinite
from pipeline.prepare import Batch, Sight
from pipeline.profile import Profile
from pipeline.run_folder import RESULTS, WRITTEN, claim, clear, write_config
from pipeline.schedule import Schedule
from pipeline.sharding import average_gradients, load_model, load_optimizer, plain_student, prepare_sharding, whole
from pipeline.skipped import SKIPPED, Ledger
from pipeline.source import Policy, Source, check_split, open_split
from pipeline.stopping import Stop, Stopped
from pipeline.stream import EvalStream, TrainStream, loader, steps_per_epoch
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
            if not isinstance(error, DistBackendError) and "gloo" not in str(error):
                raise
            raise UserError(
                f"another process ended, or did not answer for {config.train.timeout:g} s (train.timeout); its own "
                f"message says why. Go on with --resume. ({' '.join(str(error).split())[:200]})"
            ) from None
    # The process group's threads end with it, and it with the models that hold it. One that is alive when Python
    # finalises aborts the process, and the launcher then kills the other ranks.
    accelerator.free_memory()
    accelerator.end_training()
    if stopped is not None:
        raise stopped
    return run


def _train(config: Config, accelerator: Accelerator, resume: bool, overwrite: bool, profile: bool, stop: Stop) -> None:
    run = Path(config.run)
    claim(run, resume, overwrite)
    check_trackers(config.train.trackers)
    data = config.data
    policy = Policy(data.max_faulty, data.unpaired)
    check_split(data.shards, config.evaluation.split, "evaluation.split: ")
    source = open_split(data.shards, "train", data.label, data.labels, config.seed, policy, data.join)
    checked = config.evaluation.split if config.evaluation.every else None
    schedule = Schedule(config.train, steps_per_epoch(source, data.batch_size))
    held_out = open_split(data.shards, checked, data.label, policy=policy, join=data.join) if checked else None

    distillation = build_model(config)
    source = replace(source, cache=distillation.cache)
    identity = _identity(config, distillation)
    spare = prepare_sharding(distillation, config, accelerator)
    if config.train.gradient_checkpointing:
        checkpoint_gradients(distillation.student)
    if config.train.compile:
        distillation.compile_networks()
    model, optimizer = accelerator.prepare(distillation, build_optimizer(distillation, config))
    done = _resume(run, distillation, optimizer, identity, accelerator) if resume else 0
    if done >= schedule.steps:
        student = plain_student(distillation, spare)
        if accelerator.is_main_process and not (run / "student" / DESCRIPTION).exists():
            save_network(student, run / "student")
        accelerator.print(f"{run}: already trained for {done} steps; nothing to do.")
        return
    accelerator.wait_for_everyone()  # nobody may delete before all have looked
    if accelerator.is_main_process:
        clear(run, RESULTS if done else WRITTEN)
        write_config(config, run)
    accelerator.print(f"{run}: training on {accelerator.num_processes} x {accelerator.device.type}", flush=True)

    batches = training_batches(config, source, distillation.views, done, accelerator)
    profiled = Profile(run, distillation, optimizer.optimizer) if profile and accelerator.is_main_process else None
    if profiled:
        batches = profiled.watch(batches)
    elif pays(distillation, accelerator) and not config.train.compile and not held_out:
        # A check on held-out samples starts processes, which must not be forked while another thread holds locks.
        batches = teach_ahead(batches, distillation, accelerator)
    ledger = Ledger(run / SKIPPED, source.samples, policy.max_faulty)
    finite = NonFinite(distillation, run, accelerator.process_index)
    log = Log(config, run, done, schedule, accelerator)
    for step in range(done + 1, schedule.steps + 1):
        batch = log.waiting(batches)
        ledger.add(batch.pop("skipped"))
        # Randomness inside the networks is a function of the step, so a resumed run draws the same.
        torch.manual_seed(hash((config.seed, step, accelerator.process_index)))
        rate = schedule.learning_rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with accelerator.autocast():
            loss, terms = model(batch)
        accelerator.backward(loss)
        if spare is not None:
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
        if step % config.train.log_every == 0 or last:
            ledger.share(accelerator)
            log.write(step, rate, norm, distillation, ledger.counts(), finite.steps)
        if held_out and (step % config.evaluation.every == 0 or last):
            average_buffers(distillation, accelerator)
            student = plain_student(distillation, spare)
            metric, right = held_out_score(student, held_out, config, accelerator)
            log.scalars(step, {f"held_out/{metric}": right})
            if accelerator.is_main_process:
                keep_best(student, run / BEST, step, metric, right)
        due = step % config.train.checkpoint_every == 0 and finite.row == 0
        if due or last or stopping:
            ledger.share(accelerator)
            _save(run, step, distillation, optimizer, identity, config, accelerator)
        if stopping and not last:
            accelerator.wait_for_everyone()
            log.close()
            raise Stopped(
                f"{run}: stopped at step {step} as asked; go on with --resume.", stop.number or signal.SIGTERM
            )
    if profiled:
        profiled.close()
    student = plain_student(distillation, spare)
    if accelerator.is_main_process:
        save_network(student, run / "student")
    log.close()
    accelerator.print(f"{run}: done. The student is in {run / 'student'}; next: wcord evaluate {run}")


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


def _save(
    run: Path,
    step: int,
    model: Distillation,
    optimizer: Any,
    identity: dict[str, Any],
    config: Config,
    accelerator: Accelerator,
) -> None:
    """Write a checkpoint, once the ranks' statistics are averaged and their weights found equal and finite."""
    average_buffers(model, accelerator)
    assert_equal_weights(model, accelerator)
    assert_finite_weights(model, step)
    weights = whole(model.trainable_state())
    state = {"optimizer": whole(optimizer.state_dict()), "scaler": _scaler_state(accelerator)}
    if accelerator.is_main_process:
        checkpoint = Checkpoint(step, weights, state, identity, accelerator.num_processes)
        save_checkpoint(run / "checkpoints", checkpoint, config.train.keep)


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
    counts = torch.zeros(source.classes, source.classes, device=accelerator.device, dtype=torch.int64)
    student.eval()
    for batch in loader(stream, config.data.workers, accelerator.device):
        with accelerator.autocast():
            logits = student(batch["student"]).logits
        if logits is None:
            raise UserError("evaluation.every: the student has no classes to be right about; set it to 0.")
        counts += confusion(logits.argmax(1), batch["mask" if source.mask else "label"], source.classes)
    student.train()
    counts = accelerator.reduce(counts, "sum")
    if source.mask:
        return "mIoU", scores(counts, list(map(str, range(source.classes)))).get("mIoU", 0.0)
    return "top1", counts.trace().item() / max(counts.sum().item(), 1)


@torch.no_grad()
def average_buffers(model: Distillation, accelerator: Accelerator) -> None:
    """Give all ranks the mean of what each of them tracked on its own, such as the statistics of batch norms."""
    if accelerator.num_processes > 1:
        for buffer in model.student.buffers():
            if buffer.is_floating_point():
                buffer.copy_(accelerator.reduce(buffer.clone(), "mean"))


def assert_equal_weights(model: Distillation, accelerator: Accelerator) -> None:
    """Raises RuntimeError if weights that all ranks hold have come apart: then they were not trained together."""
    if accelerator.num_processes > 1:
        trained = [p.detach() for p in model.parameters() if p.requires_grad and not isinstance(p, DTensor)]
        weights = [p.double().flatten() for p in trained]
        sums = torch.stack([torch.stack([w.sum(), w.abs().sum()]) for w in weights]).sum(0)
        if len(torch.unique(accelerator.gather(sums[None]), dim=0)) != 1:
            raise RuntimeError("the ranks' weights differ: gradients were not synchronised. Do not use this run.")


def assert_finite_weights(model: Distillation, step: int) -> None:
    """Raises UserError rather than let a checkpoint be written that no run can go on from."""
    bad = [name for name, p in model.named_parameters() if p.requires_grad and not torch.isfinite(whole(p)).all()]
    own = ((name, b) for name, b in model.named_buffers() if not name.startswith("teacher."))
    bad += [name for name, b in own if not (b < math.inf).all()]  # -inf: a normaliser that is not fixed yet
    if bad:
        raise UserError(
            f"step {step}: weights or statistics are not finite ({bad[0]} and {len(bad) - 1} others), no checkpoint "
            "was written. Lower train.learning_rate or a loss's weight, and go on from the last one with --resume."
        )


def _resume(run: Path, model: Distillation, optimizer: Any, identity: dict[str, Any], accelerator: Accelerator) -> int:
    """Load the newest checkpoint, if there is one, and return how many steps were taken."""
    checkpoint = newest_checkpoint(run / "checkpoints", identity, accelerator.print)
    done = checkpoint.step if checkpoint else 0
    seen = accelerator.gather(torch.tensor([done], device=accelerator.device)).tolist()
    if len(set(seen)) > 1:
        raise UserError(
            f"{run}: the processes see different checkpoints (steps {sorted(set(seen))}): put the run folder where all "
            "machines can read it."
        )
    if checkpoint is not None:
        if accelerator.is_main_process:
            set_aside(run / "checkpoints", done)
        if checkpoint.ranks != accelerator.num_processes:
            accelerator.print(
                f"{run}: {checkpoint.ranks} processes made the checkpoint, {accelerator.num_processes} go on: the "
                "global batch is as large, but of other samples, so the weights will not be the same bits."
            )
        load_model(model, checkpoint.model)
        load_optimizer(optimizer, checkpoint.optimizer["optimizer"])
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(checkpoint.optimizer["scaler"])
    return done


def _identity(config: Config, model: Distillation) -> dict[str, Any]:
    """What a checkpoint must agree on with the run that goes on from it, as JSON."""
    settings = config.model_dump(mode="json")
    identity = {
        "student": settings["student"] | {"classes": model.student.classes},
        "teacher": model.teacher_identity(),
        "losses": settings["losses"],
        "seed": config.seed,
        "data": {k: v for k, v in settings["data"].items() if k not in ("shards", "join", "workers", "max_faulty")},
        "train": {k: settings["train"][k] for k in ("optimizer", "weight_decay", "decay_vectors", "precision")},
    }
    found: dict[str, Any] = json.loads(json.dumps(identity))
    return found


def _scaler_state(accelerator: Accelerator) -> dict[str, Any]:
    return accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
