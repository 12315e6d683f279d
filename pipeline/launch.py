"""Processes that train together, as Accelerate's launcher started them, and a word about those that cannot."""

from __future__ import annotations

import os
import warnings
from datetime import timedelta

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import parse_flag_from_env
from torch.distributed import DistError

from pipeline.config import Config
from pipeline.errors import UserError


def start_accelerator(config: Config) -> Accelerator:
    """Start Accelerate; UserError for a launch that would not train what it says."""
    _check_launch()
    # It starts the process group; Accelerator takes the one that it finds.
    patience = timedelta(seconds=config.train.timeout)
    try:
        device = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=patience).device.type
    except RuntimeError as error:
        if not lost(error):
            raise
        first = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise UserError(
            f"the processes did not meet at {first} within {config.train.timeout:g} s (train.timeout): one of them "
            f"ended, and its own message says why, or this address does not lead to the first. ({in_brief(error)})"
        ) from None
    precision = precision_of(config)
    if precision == "fp16" and device == "cpu":
        raise UserError("train.precision: fp16 needs a GPU; use fp32 (or bf16) on a CPU.")
    if device == "cpu" and parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise UserError("FSDP: Accelerate cuts models on GPUs only; launch without `use_fsdp` on a CPU.")
    # The new name of `broadcast_buffers` is not known to every version of torch that we run on.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    # The buffers are averaged where they are read; the graph is the same at every step.
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, static_graph=True, gradient_as_bucket_view=True)
    AcceleratorState._reset_state()  # of an earlier run of this process, which may have had another precision
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


def lost(error: RuntimeError) -> bool:
    """Whether an error tells of another process that ended or does not answer."""
    return isinstance(error, DistError) or "gloo" in str(error)


def in_brief(error: Exception) -> str:
    """Of its message, which may hold a stack of C++, as much as a person reads."""
    return " ".join(str(error).split())[:200]


def precision_of(config: Config) -> str:
    """fp32, bf16 or fp16: what networks compute in on the device that this process has."""
    precision = config.train.precision
    if precision != "auto":
        return precision
    native = PartialState().device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if native else "fp32"


def _check_launch() -> None:
    """Refuse what Accelerate can start and the training loop cannot drive."""
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        raise UserError(
            "DeepSpeed is not supported: it steps inside the backward pass, so a step that is not finite could not be "
            "left out, and its checkpoints are pickles that only as many processes can load. FSDP2 cuts weights, "
            "gradients and optimiser as ZeRO-3 does: accelerate launch --config_file configs/accelerate/fsdp.yaml …"
        )
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError("FSDP: version 2 is supported; set `fsdp_version: 2`, as configs/accelerate/fsdp.yaml does.")
    if os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1") != "1":
        raise UserError(
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS: would divide each step's gradient and add up none; for less "
            "memory set train.micro_batch, by which the losses see the whole batch all the same."
        )
    if os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        raise UserError(
            "ACCELERATE_DYNAMO_BACKEND: would compile the losses' exchange between processes; set train.compile=true "
            "instead and leave `dynamo_config` out."
        )
