"""Real training steps: their data, and a run of `wcord train` that ends when enough of its log lines are measured."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu.limits import DEVICE, Limits, Numbers, OutOfTimeError, number, synchronize
from benchmarks.throughput import CORES
from modalities.transformers_loader import import_transformers
from pipeline import config as configs
from pipeline.packing.pack import pack
from pipeline.packing.recipes import tabletop
from pipeline.runs.reader import read_line
from pipeline.train import train
from pipeline.train.callbacks import Callback
from pipeline.train.callbacks.base import Context

EPOCH = 50_000
"""Training samples of CIFAR, for the time of an epoch."""

LOGGED = {
    "samples/s": ("samples_per_second", 1),
    "% data wait": ("data_wait", 100),
    "TFLOP/s": ("tflops", 1),
    "% MFU": ("mfu", 100),
}
"""Quantity -> its key in the log, and the factor to its unit."""


@dataclass(frozen=True)
class Size:
    """The sizes of the two tasks.

    Attributes:
        photos: Number of scenes of 32 pixels, for `compress`.
        scenes: Number of scenes for `transfer`.
        pixels: Input size of `transfer`.
        batches: Batch size of `compress` and of `transfer`.
        teacher: Encoder of the teacher of `compress`.
        student: Encoder of its student.
        vit: Settings of the ViT, by default those of ViT-B/16.
        transfer: Encoder of the student of `transfer`.
        log_every: Steps per log line; each line is one repeat.
        workers: Loader processes.
    """

    photos: int
    scenes: int
    pixels: int
    batches: tuple[int, int]
    teacher: str
    student: str
    vit: dict[str, int]
    transfer: str
    log_every: int
    workers: int


FULL = Size(
    photos=12_800,
    scenes=2560,
    pixels=224,
    batches=(64, 128),
    teacher="{name: resnet32x4}",
    student="{name: resnet8x4}",
    vit={},
    transfer="{name: resnet, depth: 20, stem_stride: 4, size: 224}",
    log_every=20,
    workers=max(1, min(CORES - 1, 16)),  # a core remains for the training process
)
TINY_VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SMALL = Size(
    photos=64,
    scenes=32,
    pixels=32,
    batches=(16, 8),
    teacher="{name: resnet, depth: 8, width: 8, size: 16}",
    student="{name: resnet, depth: 8, width: 8, size: 16}",
    vit=TINY_VIT | {"image_size": 32, "patch_size": 8},
    transfer="{name: resnet, depth: 8, width: 8, stem_stride: 4, size: 32}",
    log_every=2,
    workers=0,
)


def prepare(limits: Limits, folder: Path) -> Numbers:
    """Pack the synthetic scenes, and write the teachers. What exists already is kept.

    Args:
        limits: The limits.
        folder: Folder of the results, which receives `data_32`, `data_224` and the teachers.
    """
    size = SMALL if limits.small else FULL
    begun = time.perf_counter()
    for name, scenes, pixels in (("data_32", size.photos, 32), ("data_224", size.scenes, size.pixels)):
        pack(tabletop.plan(scenes, 0, pixels), folder / name, shard_bytes=8 << 20, workers=max(size.workers, 1))
    import_transformers().ViTConfig(**size.vit).save_pretrained(folder / "vit")
    if not (folder / "teacher" / "student").exists():
        overrides = [*_of_photos(folder, size), f"run={folder / 'teacher'}", f"student.encoder={size.teacher}"]
        train(configs.load("rgb_teacher", [*overrides, "train.steps=2", "train.warmup=0"]), overwrite=True)
    return {"s": number([time.perf_counter() - begun])}


def step(limits: Limits, folder: Path, name: str, task: str, overrides: Sequence[str]) -> Numbers:
    """Train until enough log lines are measured.

    Args:
        limits: The limits.
        folder: Folder of the results, with the data.
        name: Name of the run.
        task: `compress` or `transfer`.
        overrides: Further overrides of the config.

    Returns:
        The numbers of the log, one value per line, and the peak memory.
    """
    size = SMALL if limits.small else FULL
    every = size.log_every
    if "data.in_memory=true" in overrides:  # a line per epoch, since each epoch begins with a new order
        every = _samples(folder / "data_32") // size.batches[0]
    own = {"compress": _compress, "transfer": _transfer}[task](folder, size)
    run = folder / "runs" / name
    limit = every * (1 + (limits.repeats if limits.small else 100))
    config = [*own, *overrides, f"run={run}", f"train.steps={limit}", f"train.log_every={every}"]
    watch = Stopwatch(limits, every)
    train(configs.load(task_config(task), config), overwrite=True, callbacks=[watch])
    if watch.refused is not None:
        raise watch.refused
    rows = [row for line in (run / "metrics.jsonl").read_bytes().splitlines() if (row := read_line(line))]
    return _numbers([row for row in rows if "samples_per_second" in row][1:], "data.in_memory=true" in overrides)


def task_config(task: str) -> str:
    """The shipped config that a task changes."""
    return {"compress": "compress", "transfer": "rgb_to_depth"}[task]


class Stopwatch(Callback):
    """Ends a run when enough log lines are measured. The first line is the warm-up.

    It waits for the GPU at the end of each line, since the log would otherwise count its last steps as done too early.

    Attributes:
        refused: Set if the remaining time did not suffice; the run then ended after the warm-up.
    """

    def __init__(self, limits: Limits, every: int) -> None:
        self.limits, self.every = limits, every
        self.half = self.begun = 0.0
        self.refused: OutOfTimeError | None = None

    def on_step(self, context: Context) -> None:
        if context.step == self.every // 2:  # the second half of the warm-up shows the time of a step
            synchronize()
            self.half = time.perf_counter()
        if context.step % self.every:
            return
        synchronize()
        lines = context.step // self.every - 1
        if lines == 0:
            self.begun = time.perf_counter()
            seconds = (self.begun - self.half) / (self.every - self.every // 2)
            try:
                self.limits.warmed_up(self.limits.repeats * self.every * seconds)
            except OutOfTimeError as error:
                self.refused = error
                context.stop("out of time")
        elif lines >= self.limits.repeats and time.perf_counter() - self.begun >= self.limits.seconds:
            context.stop("measured")


def _numbers(rows: Sequence[dict[str, float]], epoch: bool) -> Numbers:
    """The numbers of the log lines; `epoch` adds the time of an epoch."""
    found = {
        unit: number([factor * row[key] for row in rows])
        for unit, (key, factor) in LOGGED.items()
        if all(key in row for row in rows)  # the MFU is only known for known GPUs
    }
    if epoch:
        found[f"s per epoch of {EPOCH:,} samples"] = number([EPOCH / row["samples_per_second"] for row in rows])
    cuda = DEVICE.type == "cuda"
    memory = torch.cuda.max_memory_allocated() / 2**20 if cuda else rows[-1]["peak_memory_mib"]
    return found | {"MiB peak": number([memory])}


def _samples(folder: Path) -> int:
    """Number of training samples of a dataset."""
    shards = json.loads((folder / "dataset.json").read_bytes())["splits"]["train"]
    return sum(shard["samples"] for shard in shards)


def _of_photos(folder: Path, size: Size) -> list[str]:
    """Data of `compress`: augmented as in the CIFAR protocol, so that it can also be held in memory."""
    data = f"shards: {folder / 'data_32'}, batch_size: {size.batches[0]}, workers: {size.workers}"
    return [
        f"data={{{data}, pad: [4, 32], flip: true}}",
        "student.modality={name: rgb, jitter: 0}",
        "train.trackers=[]",
    ]


def _compress(folder: Path, size: Size) -> list[str]:
    return [*_of_photos(folder, size), f"teacher.run={folder / 'teacher'}", f"student.encoder={size.student}"]


def _transfer(folder: Path, size: Size) -> list[str]:
    encoder = f"{{name: transformers, model: {folder / 'vit'}, weights: random, size: {size.pixels}}}"
    return [
        f"data.shards={folder / 'data_224'}",
        f"data.batch_size={size.batches[1]}",
        f"data.workers={size.workers}",
        f"teacher={{modality: rgb, encoder: {encoder}}}",
        f"student.encoder={size.transfer}",
        "train.trackers=[]",
    ]
