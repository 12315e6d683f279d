"""Speed-up from `teacher.cache: auto`: the first epoch, in which the teacher runs, against the following ones.

python -m benchmarks.cache [--rounds 3]
"""

from __future__ import annotations

import argparse
import logging
import shutil
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

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
    """Notes the time of the start and of each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_start(self, context: Context) -> None:
        self.times = [time.perf_counter()]

    def on_step(self, context: Context) -> None:
        self.times.append(time.perf_counter())


def measure(path: Path, steps: int) -> Round:
    """Train on an empty cache."""
    for made in FOLDER.glob("data/*auto-*"):
        made.unlink()
    clock = Clock()
    train(configs.load(path), overwrite=True, callbacks=[clock])
    ends = clock.times[::steps]
    return Round(ends[1] - ends[0], ends[2] - ends[1], (ends[-1] - ends[2]) / (len(ends) - 3))


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
    whole = f"{median(values):.1f}"
    return f"{whole} ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, help="number of trainings on an empty cache")
    parser.add_argument("--samples", type=int, default=96, help="number of samples, a multiple of 16")
    options = parser.parse_args()
    logging.getLogger("pipeline").setLevel(logging.WARNING)
    path = prepare(options.samples)
    rounds = [measure(path, options.samples // BATCH) for _ in range(options.rounds)]
    print(f"{options.samples} samples, ViT-B teacher at 224 px, cnn5 student, {torch.get_num_threads()} threads")
    print(f"  epoch 1, the teacher runs: {spread([one.first for one in rounds])} s")
    print(f"  epoch 2, which first completes the cache: {spread([one.second for one in rounds])} s")
    print(f"  later epochs: {spread([one.later for one in rounds])} s")
    print(f"  epoch 1 / epoch 2: {spread([one.first / one.second for one in rounds])}")
    print(f"  epoch 1 / later epoch: {spread([one.first / one.later for one in rounds])}")


if __name__ == "__main__":
    main()
