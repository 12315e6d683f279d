"""Memory and energy used by this process."""

from __future__ import annotations

import resource
import sys

import torch

from pipeline.common.host import peak_memory


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory in MiB: reserved by torch on the GPU, or resident in this process on the CPU.

    Loader processes are not included.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**20
    if held := peak_memory():
        return held / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def energy_joules(device: torch.device) -> float | None:
    """Energy in joules that the GPU has used since its driver was loaded.

    Returns:
        None if it is not available: on a CPU, without `nvidia-ml-py`, or on an older GPU.
    """
    if device.type != "cuda":
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
    except Exception:  # older GPUs, missing permissions: many kinds of error, none of which may stop training
        return None
