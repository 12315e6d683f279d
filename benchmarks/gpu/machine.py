"""The machine on which the measurements run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import psutil
import torch

from benchmarks.gpu.limits import DEVICE, Limits


def describe(limits: Limits, folder: Path) -> dict[str, object]:
    """What results depend on: device, driver, versions, CPU cores and memory."""
    cuda = DEVICE.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(DEVICE) if cuda else "CPU",
        "device_memory_gib": round(torch.cuda.get_device_properties(DEVICE).total_memory / 2**30, 1) if cuda else 0.0,
        "driver": _driver() if cuda else "none",
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }


def _driver() -> str:
    """Version of the NVIDIA driver, which torch does not report."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"
