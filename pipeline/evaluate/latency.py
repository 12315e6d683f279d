"""Latency of networks for one sample on the CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch

ROUNDS, WARMUP = 30, 3


def latency(calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Measure the median latency of each call in ms, in one thread.

    The calls are interleaved, so other load on the machine affects all of them equally.

    Args:
        calls: Name -> function without arguments.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {name: [] for name in calls}
    try:
        with torch.inference_mode():
            for turn in range(WARMUP + ROUNDS):
                for name, call in calls.items():
                    begun = time.perf_counter()
                    call()
                    if turn >= WARMUP:
                        times[name].append(1000 * (time.perf_counter() - begun))
    finally:
        torch.set_num_threads(threads)
    return {name: float(np.median(taken)) for name, taken in times.items()}
