"""Speed-up from `teacher.cache: auto`: the first epoch, in which the teacher runs, against the following ones.

python -m benchmarks.cache [--rounds 3]
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import NamedTuple

import psutil
import torch
from transformers import ViTConfig

from pipeline import config as configs
from pipeline.packing.pack import pack
from pipeline.packing.recipes import tabletop
from pipeline.train import train
from pipeline.train.callbacks import Callback
from pipeline.train.callbacks.base import Context

FOLDER = Path("runs/bench_cache")
BATCH, EPOCHS = 16, 4
STUDENT = """
run: {folder}/student
data: {{shards: {folder}/data, batch_size: {batch}, workers: 1}}
teacher:
  modality: rgb
  encoder: {{name: transformers, model: {folder}/vit_b, weights: random, size: 224}}
  cache: auto
student: {{modality: depth, encoder: {{name: cnn5, width: 16, size: 48}}}}
losses: {{cross_entropy: {{}}, wcord: {{}}}}
train: {{epochs: {epochs}, log_every: 1, checkpoint_every: 100000, trackers: []}}
evaluation: {{split: train}}  # the only split
"""


class Round(NamedTuple):
    """Seconds of an epoch: the first one, the second one with the completion of the cache, and a later one."""

    first: float
    second: float
    later: float


class Clock(Callback):
    """Notes the time and the CPU time, with that of the loader processes, at the start and after each step."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def on_start(self, context: Context) -> None:
        self.times = [now()]

    def on_step(self, context: Context) -> None:
        self.times.append(now())


def now() -> tuple[float, float]:
    """Seconds, and CPU seconds of this process and of its children."""
    spent = sum(os.times()[:4])
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            spent += sum(child.cpu_times()[:2])
    return time.perf_counter(), spent


def measure(path: Path, steps: int) -> tuple[Round, Round]:
    """Train on an empty cache; return the seconds and the CPU seconds."""
    for made in FOLDER.glob("data/*auto-*"):
        made.unlink()
    clock = Clock()
    train(configs.load(path), overwrite=True, callbacks=[clock])
    wall, cpu = (
        Round(ends[1] - ends[0], ends[2] - ends[1], (ends[-1] - ends[2]) / (len(ends) - 3))
        for ends in zip(*clock.times[::steps], strict=True)
    )
    return wall, cpu


def prepare(samples: int) -> Path:
    """Write the data, the architecture of the teacher and the config of the student."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    scenes = tabletop.plan(samples, 0, 96)
    pack(scenes, FOLDER / "data", fractions={"train": 1.0}, seed=0, shard_bytes=2_000_000, workers=2)
    ViTConfig().save_pretrained(FOLDER / "vit_b")
    path = FOLDER / "student.yaml"
    path.write_text(STUDENT.format(folder=FOLDER, batch=BATCH, epochs=EPOCHS))
    return path


def spread(values: list[float]) -> str:
    """Median and range."""
    whole = f"{median(values):.2f}"
    return f"{whole} ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, help="number of trainings on an empty cache")
    parser.add_argument("--samples", type=int, default=96, help="number of samples, a multiple of 16")
    options = parser.parse_args()
    logging.getLogger("pipeline").setLevel(logging.WARNING)
    path = prepare(options.samples)
    rounds = [measure(path, options.samples // BATCH) for _ in range(options.rounds)]
    print(f"{options.samples} samples, ViT-B teacher at 224 px, cnn5 student, {torch.get_num_threads()} threads")
    for unit, own in zip(("seconds", "CPU seconds"), zip(*rounds, strict=True), strict=True):
        print(f"{unit}")
        print(f"  epoch 1, the teacher runs: {spread([one.first for one in own])}")
        print(f"  epoch 2, which first completes the cache: {spread([one.second for one in own])}")
        print(f"  later epochs: {spread([one.later for one in own])}")
        print(f"  epoch 1 / epoch 2: {spread([one.first / one.second for one in own])}")
        print(f"  epoch 1 / later epoch: {spread([one.first / one.later for one in own])}")


if __name__ == "__main__":
    main()
