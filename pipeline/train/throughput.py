"""The throughput of a run in TFLOP/s (`tflops`), and divided by the dense peak of the GPU (`mfu`).

Unlike the usual MFU, `mfu` includes recomputed forward passes (elsewhere called HFU).
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext

import torch

from pipeline.common.flops import FlopCounter
from pipeline.common.gpu_peaks import peak_tflops

log = logging.getLogger(__name__)


class Throughput:
    """Counts the FLOPs of this process once, in the first step after the start; all steps are assumed to have as many.

    They cover the forward and backward passes of this process, with the second forward pass of gradient caching and of
    activation checkpointing, and with the teacher unless its features are cached. The teacher is counted again when a
    cache that the run has filled replaces it.

    Args:
        device: The device of this process.
        precision: fp32, bf16 or fp16.
    """

    def __init__(self, device: torch.device, precision: str) -> None:
        self.counter: FlopCounter | None = FlopCounter()
        self.step_flops: int | None = None
        self.taught = 0
        self.peak = _peak(device, precision)

    def counting(self) -> AbstractContextManager[object]:
        """Count the operations in a block, in the first step only."""
        return self.counter or nullcontext()

    def add(self, counted: FlopCounter) -> None:
        """Add the operations of the teacher, counted elsewhere: in the first step, or later if they change."""
        if self.counter is not None:
            self.counter.flops += counted.flops
            self.counter.unknown |= counted.unknown
        elif self.step_flops is not None:
            self.step_flops += counted.flops - self.taught
        self.taught = counted.flops

    def end_step(self) -> None:
        """End a step, and with the first one the counting."""
        if self.counter is None:
            return
        if self.counter.unknown:
            log.info(f"tflops is not logged: cannot count the FLOPs of {', '.join(sorted(self.counter.unknown))}.")
        elif self.counter.flops:
            self.step_flops = self.counter.flops
        self.counter = None

    def row(self, steps_per_second: float) -> dict[str, float]:
        """`tflops` of this process and, if the peak of its device is known, `mfu` in [0, 1]."""
        if self.step_flops is None:
            return {}
        tflops = self.step_flops * steps_per_second / 1e12
        return {"tflops": tflops, **({"mfu": tflops / self.peak} if self.peak else {})}


def _peak(device: torch.device, precision: str) -> float | None:
    """Peak of the device in TFLOP/s. Settings that allow TF32 in matrix products or in convolutions imply TF32."""
    if device.type != "cuda":
        return None
    try:
        tf32 = torch.get_float32_matmul_precision() != "highest" or torch.backends.cudnn.allow_tf32
    except RuntimeError:  # torch's newer settings of TF32 are in use, and it does not read them as the older ones
        tf32 = True
    return peak_tflops(torch.cuda.get_device_name(device), precision, tf32)
