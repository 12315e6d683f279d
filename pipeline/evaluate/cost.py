"""Cost of a run: time and memory of training; parameters, operations and latency of the networks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.common.flops import FlopCounter
from pipeline.data.source import Source
from pipeline.data.stream import EvalStream, loader
from pipeline.models.network import Joint, Network
from pipeline.runs.reader import read_log

WARM_UP, REPEATS = 3, 20


def training_cost(run: Path, batch_size: int) -> dict[str, float]:
    """Read the cost of training from the log of a run.

    Args:
        run: The run folder.
        batch_size: Global batch size.

    Returns:
        `train/seconds`, `train/seconds_per_step` (median over the lines), `train/peak_memory_mib`,
        `train/energy_joules` and `train/nonfinite_steps`, as far as the log contains them.
    """
    rows = read_log(run / "metrics.jsonl", []).values()
    names = ("seconds", "peak_memory_mib", "energy_joules", "nonfinite_steps")
    logged = {name: [row[name] for row in rows if name in row] for name in names}
    cost = {f"train/{name}": max(values) for name, values in logged.items() if values}
    rates = [row["samples_per_second"] for row in rows if "samples_per_second" in row]
    return cost | ({"train/seconds_per_step": batch_size / statistics.median(rates)} if rates else {})


def unpaired(run: Path) -> dict[str, float]:
    """`unpaired/train`: fraction of training samples in [0, 1] that were used without the teacher's modality."""
    shares = {step: row["unpaired"] for step, row in read_log(run / "metrics.jsonl", []).items() if "unpaired" in row}
    steps = np.diff([0, *shares])  # the number of steps that each line averages
    return {"unpaired/train": float(np.average([*shares.values()], weights=steps))} if shares else {}


def multiply_adds(network: nn.Module, batch: Any) -> float | None:
    """Multiply-adds of one forward pass: half the FLOPs of its matrix products and convolutions; None if unknown."""
    with FlopCounter() as counter:
        network(batch)
    return None if counter.unknown else counter.flops / 2


def latency_ms(network: nn.Module, batch: Any, device: torch.device) -> float:
    """Median time of a forward pass in ms, after warm-up."""
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
    """Measure each network on one sample, on its current device.

    Args:
        networks: Role -> network.
        source: The split to take the sample from.

    Returns:
        `parameters/ROLE`, `multiply_adds/ROLE` (if it can be counted) and `latency_ms/ROLE/DEVICE`.
    """
    device = next(parameter.device for network in networks.values() for parameter in network.parameters())
    one = next(loader(EvalStream(source, {role: n.view for role, n in networks.items()}, batch=1), 0, device))
    cost: dict[str, float] = {}
    for role, network in networks.items():
        batch = one[role]
        cost[f"parameters/{role}"] = sum(p.numel() for p in network.parameters())
        if (operations := multiply_adds(network, batch)) is not None:
            cost[f"multiply_adds/{role}"] = operations
        cost[f"latency_ms/{role}/{device.type}"] = latency_ms(network, batch, device)
    return cost
