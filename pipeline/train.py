"""The training loop, the same for a teacher, a compressed student and a student of another modality."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from pipeline.checkpoint import Checkpoint, list_checkpoints, load_checkpoint, save_checkpoint
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.log import Log
from pipeline.model import Distillation, build_model
from pipeline.network import save_network
from pipeline.run_folder import claim, write_config
from pipeline.stream import EvalStream, TrainStream, loader, open_split


def train(config: Config, resume: bool = False, overwrite: bool = False) -> Path:
    """Train what a config describes and return its run folder.

    resume: go on from the newest checkpoint, if there is one. overwrite: remove an earlier run of the same name.
    Raises UserError for everything that a person can mend, before anything heavy starts where that can be known.
    """
    accelerator = start_accelerator(config)
    run = Path(config.run)
    claim(run, resume, overwrite, accelerator)
    data = config.data
    source = open_split(data.shards, "train", data.label, data.labels, config.seed)
    held_out = open_split(data.shards, config.evaluation.split, data.label) if config.evaluation.every else None

    distillation = build_model(config)
    identity = _identity(config, distillation)
    model, optimizer = accelerator.prepare(distillation, build_optimizer(distillation, config))
    done = _resume(run, distillation, optimizer, identity, accelerator) if resume else 0
    if done >= config.train.steps:
        accelerator.print(f"{run}: already trained for {done} steps; nothing to do.")
        return run
    if accelerator.is_main_process:
        write_config(config, run)

    stream = TrainStream(
        source,
        distillation.views,
        batch=data.batch_size // accelerator.num_processes,
        ranks=accelerator.num_processes,
        rank=accelerator.process_index,
        seed=config.seed,
        shuffle=data.shuffle,
        crop=data.crop,
        flip=data.flip,
        start=done,
    )
    batches = loader(stream, data.workers, accelerator.device)
    log = Log(config, run, done, stream.steps_per_epoch, accelerator)
    for step in range(done + 1, config.train.steps + 1):
        batch = log.waiting(batches)
        # Randomness inside the networks is a function of the step, so a resumed run draws the same.
        torch.manual_seed(hash((config.seed, step, accelerator.process_index)))
        rate = learning_rate(step, config)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with accelerator.autocast():
            loss, terms = model(batch)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(model.parameters(), config.train.clip)
        optimizer.step()
        optimizer.zero_grad()

        last = step == config.train.steps
        log.add(loss, terms)
        if step % config.train.log_every == 0 or last:
            log.write(step, rate, norm, distillation)
        if held_out and (step % config.evaluation.every == 0 or last):
            average_buffers(distillation, accelerator)
            log.scalars(step, {"held_out/top1": top1(distillation, held_out, config, accelerator)})
        if step % config.train.checkpoint_every == 0 or last:
            average_buffers(distillation, accelerator)
            assert_equal_weights(distillation, accelerator)
            if accelerator.is_main_process:
                state = {"optimizer": optimizer.state_dict(), "scaler": _scaler_state(accelerator)}
                save_checkpoint(
                    run / "checkpoints",
                    Checkpoint(step, distillation.trainable_state(), state, identity),
                    config.train.keep,
                )
    if accelerator.is_main_process:
        save_network(distillation.student, run / "student")
    log.close()
    accelerator.print(f"{run}: done. The student is in {run / 'student'}; next: wcord evaluate {run}")
    accelerator.end_training()
    return run


def start_accelerator(config: Config) -> Accelerator:
    """Start Accelerate; UserError if the launcher started more processes than it joined."""
    precision = config.train.precision
    if precision == "auto":
        precision = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"
    # The buffers are averaged where they are read; the graph is the same at every step.
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, static_graph=True)
    accelerator = Accelerator(mixed_precision="no" if precision == "fp32" else precision, kwargs_handlers=[ddp])
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise UserError(
            f"the launcher started {launched} processes, but {accelerator.num_processes} train together: they would be "
            "unsynchronised copies. On CPU: ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 …"
        )
    if config.data.batch_size % accelerator.num_processes:
        raise UserError(
            f"data.batch_size: {config.data.batch_size} is the global batch and must be a multiple of the "
            f"{accelerator.num_processes} processes."
        )
    return accelerator


def build_optimizer(model: Distillation, config: Config) -> torch.optim.Optimizer:
    """AdamW, or SGD with momentum 0.9; vectors and scalars (biases, norms, temperatures) are not decayed."""
    trained = [p for p in model.parameters() if p.requires_grad]
    decay = config.train.weight_decay
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.train.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.train.learning_rate, momentum=0.9)
    return torch.optim.AdamW(groups, lr=config.train.learning_rate)


def learning_rate(step: int, config: Config) -> float:
    """Linear warm-up to the peak, then half a cosine to 0 at the last step; `step` counts from 1."""
    peak, warmup, steps = config.train.learning_rate, config.train.warmup, config.train.steps
    if step <= warmup:
        return peak * step / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1))) / 2


@torch.no_grad()
def top1(model: Distillation, source: Any, config: Config, accelerator: Accelerator) -> float:
    """The student's accuracy on a whole split, shared by all ranks; 0 to 1."""
    views = {"student": model.views["student"]}
    ranks, rank = accelerator.num_processes, accelerator.process_index
    stream = EvalStream(source, views, batch=256, ranks=ranks, rank=rank)
    count = torch.zeros(2, device=accelerator.device, dtype=torch.float64)
    model.eval()
    for batch in loader(stream, config.data.workers, accelerator.device):
        with accelerator.autocast():
            logits = model.student(batch["student"]).logits
        known = batch["label"] >= 0
        count += torch.stack([((logits.argmax(1) == batch["label"]) & known).sum(), known.sum()])
    model.train()
    right, total = accelerator.reduce(count, "sum").tolist()
    return right / max(total, 1)


@torch.no_grad()
def average_buffers(model: Distillation, accelerator: Accelerator) -> None:
    """Give all ranks the mean of what each of them tracked on its own, such as the statistics of batch norms."""
    if accelerator.num_processes > 1:
        for buffer in model.student.buffers():
            if buffer.is_floating_point():
                buffer.copy_(accelerator.reduce(buffer.clone(), "mean"))


def assert_equal_weights(model: Distillation, accelerator: Accelerator) -> None:
    """Raises RuntimeError if the ranks' weights have come apart: then they were not trained together."""
    if accelerator.num_processes > 1:
        weights = [p.detach().double().flatten() for p in model.parameters() if p.requires_grad]
        sums = torch.stack([torch.stack([w.sum(), w.abs().sum()]) for w in weights]).sum(0)
        if len(torch.unique(accelerator.gather(sums[None]), dim=0)) != 1:
            raise RuntimeError("the ranks' weights differ: gradients were not synchronised. Do not use this run.")


def _resume(run: Path, model: Distillation, optimizer: Any, identity: dict[str, Any], accelerator: Accelerator) -> int:
    """Load the newest checkpoint, if there is one, and return how many steps were taken."""
    checkpoints = list_checkpoints(run / "checkpoints")
    if not checkpoints:
        return 0
    checkpoint = load_checkpoint(checkpoints[-1], identity)
    model.load_trainable_state(checkpoint.model)
    optimizer.load_state_dict(checkpoint.optimizer["optimizer"])
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(checkpoint.optimizer["scaler"])
    return checkpoint.step


def _identity(config: Config, model: Distillation) -> dict[str, Any]:
    """What a checkpoint must agree on with the run that goes on from it."""
    losses = {name: {k: v for k, v in own.items() if k != "weight"} for name, own in config.losses.items()}
    teacher = model.teacher.spec if model.teacher is not None else None
    return json.loads(json.dumps({"student": model.student.spec, "teacher": teacher, "losses": losses}))


def _scaler_state(accelerator: Accelerator) -> dict[str, Any]:
    return accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
