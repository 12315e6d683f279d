"""Connects the processes that Accelerate's launcher started, and rejects unsupported launches."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, parse_flag_from_env
from torch.distributed import DistError

from pipeline.common.console import world_size
from pipeline.common.errors import UserError
from pipeline.common.owner import owned
from pipeline.config.settings import Config
from pipeline.models.precision import precision_of

log = logging.getLogger(__name__)


def start_accelerator(config: Config) -> Accelerator:
    """Start Accelerate.

    Args:
        config: The config.

    Returns:
        The accelerator.

    Raises:
        UserError: The launch is not supported, or the processes cannot connect.
    """
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name, "set").strip():
            del os.environ[name]  # Accelerate would try to read an empty value as a number
    _check_launch()
    # It starts the process group, which Accelerator reuses.
    patience = timedelta(seconds=config.train.timeout)
    try:
        device = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=patience).device.type
    except RuntimeError as error:
        if not lost(error):
            raise
        first = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise UserError(
            f"the processes did not connect to {first} within {config.train.timeout:g} s (train.timeout). Either one "
            f"of them failed (see its error message), or this is not the address of rank 0. ({in_brief(error)})"
        ) from None
    precision = precision_of(config)
    if precision == "fp16" and device == "cpu":
        raise UserError("train.precision: fp16 requires a GPU; use fp32 (or bf16) on a CPU.")
    if device == "cpu" and parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise UserError("FSDP: Accelerate only shards models on GPUs; launch without `use_fsdp` on a CPU.")
    # Some supported versions of torch only know the old name `broadcast_buffers`.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    # Buffers are averaged before they are used, so no broadcast. The graph is the same in every step.
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, static_graph=True, gradient_as_bucket_view=True)
    AcceleratorState._reset_state()  # an earlier run in this process may have had another precision
    accelerator = Accelerator(mixed_precision="no" if precision == "fp32" else precision, kwargs_handlers=[ddp])
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", precision) and accelerator.is_main_process:
        log.warning(f"mixed_precision: {asked} from the launcher is ignored; train.precision sets {precision}.")
    launched = world_size()
    if accelerator.num_processes != launched:
        raise UserError(
            f"the launcher started {launched} processes, but the process group has {accelerator.num_processes}: "
            "they would train separate copies of the model. On GPUs, start them with `accelerate launch --multi_gpu`; "
            "on CPU, with `ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 …`."
        )
    if config.data.batch_size % accelerator.num_processes:
        raise UserError(
            f"data.batch_size: the global batch {config.data.batch_size} must be divisible by the number of processes "
            f"({accelerator.num_processes})."
        )
    return accelerator


@contextmanager
def owned_by_all(accelerator: Accelerator, path: Path, work: str = "", patience: float = 0.0) -> Iterator[None]:
    """Lock an output as in `owned`: rank 0 acquires the lock, and all ranks fail if it cannot."""
    with ExitStack() as held:
        refused: list[str | None] = [None]
        if accelerator.is_main_process:
            try:
                held.enter_context(owned(path, work, patience))
            except UserError as error:
                refused = [str(error)]
        if accelerator.num_processes > 1:
            broadcast_object_list(refused)
        if refused[0] is not None:
            raise UserError(refused[0])
        yield


def lost(error: RuntimeError) -> bool:
    """Whether an error means that another process ended or does not respond."""
    return isinstance(error, DistError) or "gloo" in str(error)


def in_brief(error: Exception) -> str:
    """The first 200 characters of an error message, which may contain a C++ stack trace."""
    return " ".join(str(error).split())[:200]


def _check_launch() -> None:
    """Reject launches that Accelerate supports, but not this training loop."""
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        raise UserError(
            "DeepSpeed is not supported: its optimiser step is part of the backward pass, so non-finite steps cannot "
            "be skipped, and its checkpoints are pickles that require the same number of processes. Use FSDP2, which "
            "shards weights, gradients and optimiser states like ZeRO-3: "
            "accelerate launch --config_file configs/accelerate/fsdp.yaml …"
        )
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError("FSDP: only version 2 is supported; set `fsdp_version: 2`, as in configs/accelerate/fsdp.yaml.")
    if os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1") != "1":
        raise UserError(
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS: not supported, since it would divide gradients without "
            "accumulating them. To save memory, set train.micro_batch: the losses still use the whole batch."
        )
    if os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        raise UserError(
            "ACCELERATE_DYNAMO_BACKEND: not supported, since it would compile the communication of the losses. Set "
            "train.compile=true instead, and remove `dynamo_config`."
        )
