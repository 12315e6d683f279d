"""Compares in-memory with streamed training on small photos: samples per second, equality of pixels, accuracy.

python -m benchmarks.in_memory --cifar PATH        folder with {train,test}/<class>/*.jpg
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch

from modalities import RGB
from pipeline import config as configs
from pipeline.data.augmentation import Augmentation
from pipeline.data.dataset import MANIFEST
from pipeline.data.in_memory import InMemory
from pipeline.data.source import Source, open_split
from pipeline.data.stream import TrainStream, loader
from pipeline.data.views import View
from pipeline.evaluate import evaluate
from pipeline.packing.pack import pack
from pipeline.packing.recipes import manifest
from pipeline.train import train

FOLDER = Path("runs/bench_in_memory")
BATCH, SEEDS, PAD = 64, 3, (4, 32)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CONFIG = Path(__file__).parent / "configs" / "in_memory.yaml"


def pack_part(source: Path, out: Path, each: int) -> None:
    """Pack the first photos of every class: `each` for training, half as many for testing."""
    rows = [
        {"rgb": str(file), "class": folder.name, "split": split}
        for split, count in (("train", each), ("test", each // 2))
        for folder in sorted((source / split).iterdir())
        for file in sorted(folder.iterdir())[:count]
    ]
    table = out.with_suffix(".jsonl")
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pack(manifest.plan(table, {"rgb": "rgb"}, labels=["class"], split="split"), out, shard_bytes=1_000_000, workers=2)


def streamed(source: Source, workers: int) -> Iterator[Any]:
    views = {"student": View(RGB(jitter=0.0), 32)}
    return loader(TrainStream(source, views, Augmentation(flip=True, pad=PAD), batch=BATCH), workers, DEVICE)


def held(source: Source) -> Iterator[Any]:
    views = {"student": View(RGB(jitter=0.0), 32)}
    return iter(InMemory(source, views, Augmentation(flip=True, pad=PAD), batch=BATCH, device=DEVICE))


def epoch(batches: Iterator[Any], steps: int) -> dict[str, torch.Tensor]:
    return {
        key: x for batch in islice(batches, steps) for key, x in zip(batch["key"], batch["student"].cpu(), strict=True)
    }


def samples_per_second(batches: Iterator[Any], steps: int) -> float:
    """Samples per second over an epoch, after a warm-up epoch that hashes files, fills buffers and decodes photos."""
    for _ in islice(batches, steps):
        pass
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in islice(batches, steps):
        pass
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return steps * BATCH / (time.perf_counter() - begun)


def loading(source: Source) -> None:
    steps = source.samples // BATCH
    one, two = epoch(streamed(source, 0), steps), epoch(held(source), steps)
    common = one.keys() & two.keys()
    equal = sum(torch.equal(one[key], two[key]) for key in common)
    print(f"pixels: {equal} of {len(common)} photos equal in the stream and in memory")
    for workers in (0, 2):
        pairs = [
            (samples_per_second(streamed(source, workers), steps), samples_per_second(held(source), steps))
            for _ in range(3)
        ]
        stream, memory = (median(column) for column in zip(*pairs, strict=True))
        ratio = median(b / a for a, b in pairs)
        print(f"batches alone, {workers} workers: stream {stream:.0f}, memory {memory:.0f} samples/s, {ratio:.1f} x")


def training(data: Path, epochs: int) -> None:
    """Train both with three seeds, interleaved, so other load on the machine affects both equally."""
    top1: dict[bool, list[float]] = {False: [], True: []}
    speed: dict[bool, list[float]] = {False: [], True: []}
    for seed in range(SEEDS):
        for memory in top1:
            run = FOLDER / f"{'memory' if memory else 'stream'}_s{seed}"
            settings = [f"run={run}", f"seed={seed}", f"data.shards={data}", f"train.epochs={epochs}"]
            train(configs.load(CONFIG, [*settings, f"data.in_memory={str(memory).lower()}"]), overwrite=True)
            top1[memory].append(evaluate(run)["student/top1"])
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            speed[memory].append(median(row["samples_per_second"] for row in rows[1:]))
    for memory, name in ((False, "stream"), (True, "memory")):
        found = [100 * value for value in top1[memory]]
        print(f"{name}: top-1 {mean(found):.1f} ± {stdev(found):.1f} %, {median(speed[memory]):.0f} samples/s")
    difference = [100 * (b - a) for a, b in zip(top1[False], top1[True], strict=True)]
    ratio = median(b / a for a, b in zip(speed[False], speed[True], strict=True))
    print(f"memory minus stream: {mean(difference):+.1f} ± {stdev(difference):.1f} points; {ratio:.2f} x as fast")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar", type=Path, required=True, help="folder with {train,test}/<class>/*.jpg")
    parser.add_argument("--each", type=int, default=500, help="training photos per class")
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    data = FOLDER / f"data_{options.each}"
    if not (data / MANIFEST).exists():
        pack_part(options.cifar.resolve(), data, options.each)
    loading(open_split(data, "train", "label"))
    training(data, options.epochs)


if __name__ == "__main__":
    main()
