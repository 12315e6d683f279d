"""What a run costs: its time and memory while it trains."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

from pipeline.runs import read_log


def peak_memory_mib(device: torch.device) -> float:
    """The most memory so far, in MiB: what torch reserved on the GPU, or what this process held on the CPU.

    On the CPU the loader's processes are not counted.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def training_cost(run: Path) -> dict[str, float]:
    """`train/seconds` and `train/peak_memory_mib`, as far as the run's log tells."""
    rows = read_log(run / "metrics.jsonl", []).values()
    logged = {name: [row[name] for row in rows if name in row] for name in ("seconds", "peak_memory_mib")}
    return {f"train/{name}": max(values) for name, values in logged.items() if values}
