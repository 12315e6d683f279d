"""`wcord train CONFIG OVERRIDES`, cut by FSDP2 on CPU processes: Accelerate offers it on GPUs only, torch on both."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.train import loop as training
from pipeline.train import step as steps

start, save = training.start_accelerator, steps.save


def start_sharded(config: configs.Config) -> Accelerator:
    accelerator = start(config)
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", reshard_after_forward=True
    )
    accelerator.state.distributed_type = type(accelerator.state)._shared_state["distributed_type"] = (
        DistributedType.FSDP
    )
    return accelerator


def save_sharded(*arguments: Any) -> None:
    save(*arguments)
    _report(arguments[0].optimizer)


def _report(optimizer: torch.optim.Optimizer) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    print(f"{sum(isinstance(p, DTensor) for p in parameters)} of {len(parameters)} parameters are cut", flush=True)


if __name__ == "__main__":
    training.start_accelerator, steps.save = start_sharded, save_sharded
    try:
        training.train(configs.load(sys.argv[1], sys.argv[2:]), resume=True)
    except UserError as error:
        sys.exit(str(error))
    # DTensor's caches keep gloo's process group, and its threads, for good. One that lets go of its last work while
    # Python finalises aborts the process, so Python does not finalise. On GPUs the groups are NCCL's, which end.
    sys.stdout.flush()
    os._exit(0)
