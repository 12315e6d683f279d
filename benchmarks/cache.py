"""Speed-up from the teacher cache: an epoch of a small depth student with a ViT-B teacher, with and without cache.

python -m benchmarks.cache
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from transformers import ViTConfig

from pipeline import config as configs
from pipeline.packing.pack import pack
from pipeline.packing.recipes import tabletop
from pipeline.train import train
from pipeline.train.cache_teacher import cache

FOLDER = Path("runs/bench_cache")
SCENES, BATCH = 256, 32
TEACHER = """
run: {folder}/teacher
data: {{shards: {folder}/data, batch_size: 2, workers: 0}}
student: {{modality: rgb, encoder: {{name: transformers, model: {folder}/vit_b, weights: random, size: 224}}}}
losses: {{cross_entropy: {{}}}}
train: {{steps: 1, warmup: 0}}
evaluation: {{split: train}}  # the only split
"""
STUDENT = """
run: {folder}/student
data: {{shards: {folder}/data, batch_size: {batch}, workers: 1}}
teacher: {{run: {folder}/teacher}}
student: {{modality: depth, encoder: {{name: cnn5, width: 16, size: 48}}}}
losses: {{cross_entropy: {{}}, wcord: {{}}}}
train: {{steps: {steps}, log_every: 1, checkpoint_every: 100000}}
evaluation: {{split: train}}
"""


def timed(path: Path, name: str, *overrides: str) -> float:
    begun = time.perf_counter()
    train(configs.load(path, [f"run={FOLDER / name}", *overrides]), overwrite=True)
    return time.perf_counter() - begun


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    pack(
        tabletop.plan(SCENES, 0, 96),
        FOLDER / "data",
        fractions={"train": 1.0},
        seed=0,
        shard_bytes=2_000_000,
        workers=2,
    )
    ViTConfig().save_pretrained(FOLDER / "vit_b")
    paths = {}
    for name, text in (("teacher", TEACHER), ("student", STUDENT)):
        paths[name] = FOLDER / f"{name}.yaml"
        paths[name].write_text(text.format(folder=FOLDER, batch=BATCH, steps=SCENES // BATCH))
    train(configs.load(paths["teacher"]))
    begun = time.perf_counter()
    cache(configs.load(paths["student"], ["teacher.cache=vit"]))
    filling = time.perf_counter() - begun
    start = timed(paths["student"], "start", "teacher.cache=vit", "train.steps=1")
    one, two = (
        timed(paths["student"], f"{n}", "teacher.cache=vit", f"train.steps={n * SCENES // BATCH}") for n in (1, 6)
    )
    live = timed(paths["student"], "live") - (start - (two - one) / 5 / (SCENES // BATCH))
    epoch = (two - one) / 5
    print(
        f"{SCENES} samples, ViT-B teacher at 224 px, cnn5 student: an epoch takes {live:.1f} s with the teacher, "
        f"{epoch:.2f} s with its cache, {live / epoch:.0f} times faster; filling the cache took {filling:.1f} s"
    )


if __name__ == "__main__":
    main()
