"""What a run costs: time and memory while it trains; size, operations and latency of its networks."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.host import peak_memory
from pipeline.network import Joint, Network
from pipeline.runs import read_log
from pipeline.source import Source
from pipeline.stream import EvalStream, loader

WARM_UP, REPEATS = 3, 20


def peak_memory_mib(device: torch.device) -> float:
    """The most memory so far, in MiB: what torch reserved on the GPU, or what this process held on the CPU.

    On the CPU the loader's processes are not counted.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**20
    if held := peak_memory():
        return held / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def energy_joules(device: torch.device) -> float | None:
    """What the GPU has used since its driver was loaded, in J; None where nobody tells (a CPU, no `nvidia-ml-py`)."""
    if device.type != "cuda":
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
    except Exception:  # older GPUs, missing rights: many kinds of error, none of which may end a training
        return None


def training_cost(run: Path, batch_size: int) -> dict[str, float]:
    """`train/seconds`, `train/seconds_per_step` (the median over the log's lines), `train/peak_memory_mib`,
    `train/energy_joules` and `train/nonfinite_steps`, as far as the run's log tells."""
    rows = read_log(run / "metrics.jsonl", []).values()
    told = ("seconds", "peak_memory_mib", "energy_joules", "nonfinite_steps")
    logged = {name: [row[name] for row in rows if name in row] for name in told}
    cost = {f"train/{name}": max(values) for name, values in logged.items() if values}
    rates = [row["samples_per_second"] for row in rows if "samples_per_second" in row]
    return cost | ({"train/seconds_per_step": batch_size / statistics.median(rates)} if rates else {})


def unpaired(run: Path) -> dict[str, float]:
    """`unpaired/train`: the share of the training samples, in [0, 1], that were kept without the teacher's view."""
    shares = {step: row["unpaired"] for step, row in read_log(run / "metrics.jsonl", []).items() if "unpaired" in row}
    steps = np.diff([0, *shares])  # that each line is the mean of
    return {"unpaired/train": float(np.average([*shares.values()], weights=steps))} if shares else {}


def multiply_adds(network: nn.Module, batch: Any) -> float:
    """Multiply-adds of one forward pass: half the operations of its matrix products and convolutions."""
    # The counter knows matrix products, but not every kernel that fuses them.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            network(batch)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops() / 2


def latency_ms(network: nn.Module, batch: Any, device: torch.device) -> float:
    """The median time of a forward pass, in ms, after a few that are not counted."""
    times = []
    for _ in range(WARM_UP + REPEATS):
        begun = time.perf_counter()
        network(batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1000 * (time.perf_counter() - begun))
    return statistics.median(times[WARM_UP:])


@torch.no_grad()
def inference_cost(networks: Mapping[str, Network | Joint], source: Source) -> dict[str, float]:
    """Parameters, multiply-adds and latency of each network for one sample, on the device that it is on."""
    device = next(parameter.device for network in networks.values() for parameter in network.parameters())
    one = next(loader(EvalStream(source, {role: n.view for role, n in networks.items()}, batch=1), 0, device))
    cost: dict[str, float] = {}
    for role, network in networks.items():
        batch = one[role]
        cost[f"parameters/{role}"] = sum(p.numel() for p in network.parameters())
        cost[f"multiply_adds/{role}"] = multiply_adds(network, batch)
        cost[f"latency_ms/{role}/{device.type}"] = latency_ms(network, batch, device)
    return cost
