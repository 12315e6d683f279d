"""The measurements, most useful first.

This module imports nothing that uses the GPU, since the process that starts the measurements must leave it to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Measurement:
    """One measurement, which runs in its own process.

    Attributes:
        name: Name in the JSON.
        title: What is measured, as in the table.
        function: Function that measures, `module:name` within this package; see `child.py`.
        settings: Its keywords.
        launcher: Arguments of Python that start the process, before `-m benchmarks.gpu`.
        needs_data: Whether it reads the packed data.
        needs_gpu: Why it is left out on a CPU; empty if it is not.
        against: Name of the measurement that its speed is compared with; empty if there is none.
    """

    name: str
    title: str
    function: str
    settings: Mapping[str, object] = field(default_factory=dict)
    launcher: tuple[str, ...] = ()
    needs_data: bool = False
    needs_gpu: str = ""
    against: str = ""


def _step(name: str, title: str, task: str, *overrides: str, **others: Any) -> Measurement:
    """Training steps of a task of `training.py` with changed settings."""
    settings = {"name": name, "task": task, "overrides": overrides}
    against = "" if name.endswith("_bf16") else f"{task}_bf16"
    return Measurement(name, title, "training:step", settings, needs_data=True, against=against, **others)


def _transport(name: str, title: str, **others: Any) -> Measurement:
    title = f"transport loss, forward and backward, {title}"
    against = "" if name == "eager" else "sinkhorn_eager"
    return Measurement(f"sinkhorn_{name}", title, "operators:transport", {"name": name}, against=against, **others)


def _global_term(name: str, title: str) -> Measurement:
    title = f"global term, forward and backward, {title}"
    against = "" if name == "published" else "global_published"
    return Measurement(f"global_{name}", title, "operators:global_term", {"name": name}, against=against)


MACHINE = Measurement("machine", "The machine", "machine:describe")
DATA = Measurement("data", "The data", "training:prepare")

SMALL_STEP, LARGE_STEP = "resnet32x4 to resnet8x4, 32 px", "RGB ViT-B to depth resnet20, 224 px"
BF16, FP32, COMPILE = "train.precision=bf16", "train.precision=fp32", "train.compile=true"
SLOW_ON_CPU = "compiling for a CPU takes longer than all other measurements of the small form"
ONE_GPU = ("--config_file", str(ROOT / "configs" / "accelerate" / "fsdp.yaml"), "--num_processes", "1")
FSDP: dict[str, Any] = {
    "launcher": ("-m", "accelerate.commands.launch", *ONE_GPU),
    "needs_gpu": "Accelerate shards models only on GPUs",
}

MEASUREMENTS = (
    _step("compress_bf16", f"{SMALL_STEP}, bf16", "compress", BF16),
    _step("transfer_bf16", f"{LARGE_STEP}, bf16", "transfer", BF16),
    _step("compress_fp32", f"{SMALL_STEP}, fp32", "compress", FP32),
    _step("transfer_fp32", f"{LARGE_STEP}, fp32", "transfer", FP32),
    _step("compress_compile", f"{SMALL_STEP}, bf16, compiled", "compress", BF16, COMPILE, needs_gpu=SLOW_ON_CPU),
    _step("transfer_compile", f"{LARGE_STEP}, bf16, compiled", "transfer", BF16, COMPILE, needs_gpu=SLOW_ON_CPU),
    _transport("eager", "Sinkhorn eager"),
    _transport("compiled", "Sinkhorn compiled", needs_gpu=SLOW_ON_CPU),
    _transport("row_blocked", "in row blocks"),
    _transport("flash", "flash-sinkhorn"),
    _global_term("published", "published form"),
    _global_term("own", "`global_contrast`"),
    _step("transfer_fsdp", f"{LARGE_STEP}, bf16, FSDP2 on one GPU", "transfer", BF16, **FSDP),
    _step("compress_in_memory", f"{SMALL_STEP}, bf16, in memory", "compress", BF16, "data.in_memory=true"),
)


def find(name: str) -> Measurement:
    """The measurement of this name."""
    return next(each for each in (MACHINE, DATA, *MEASUREMENTS) if each.name == name)
