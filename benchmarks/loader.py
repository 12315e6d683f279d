"""Compares the paired stream with a plain webdataset loop with equal decoding and augmentation; memory over samples.

python -m benchmarks.loader
python -m benchmarks.loader --before CLONE    # compares the packed stream with that of another checkout
python -m benchmarks.loader --memory 1000000
python -m benchmarks.loader --profile         # CPU time by stage on photos of 32 x 32 pixels
python -m benchmarks.loader --peers           # on the same photos, compared with other loaders and in a KD step

CLONE is a checkout of this repository, for example `git worktree add ../before a371e73`: the last commit whose stream
had a tar reader of its own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import active_children
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import psutil
import torch
import webdataset as wds
from torch.multiprocessing.spawn import spawn
from torch.utils.data import DataLoader

from modalities import RGB, Depth
from modalities.base import Geometry
from pipeline.data.augmentation import Augmentation
from pipeline.data.dataset import MANIFEST, Dataset
from pipeline.data.manifest import write_shard
from pipeline.data.source import open_split
from pipeline.data.stream import TrainStream, loader
from pipeline.data.views import View
from pipeline.packing.pack import pack
from pipeline.packing.recipes import tabletop

FOLDER = Path("runs/bench_loader")
SCENES, BATCH, SHUFFLE, CROP = 2000, 64, 1000, (0.6, 1.0)
CPU = torch.device("cpu")


def views() -> dict[str, View]:
    return {"teacher": View(RGB(), 96), "student": View(Depth(input="depth+normals"), 96)}


def bare(folder: Path, workers: int) -> Iterator[Any]:
    """A plain loop without fixed order, resuming, labels or checks; one random generator per worker."""
    own = views()

    def prepare(sample: dict[str, Any]) -> list[Any]:
        rng = np.random.default_rng()
        geometry = Geometry.draw(rng, CROP, True)
        fields = {"teacher": sample["rgb.jpg"], "student": sample["depth.png"]}
        return [
            view.modality.augment(view.modality.decode(fields[role], {}), geometry, view.size, rng)
            for role, view in own.items()
        ]

    files = sorted(map(str, folder.glob("train-*.tar")))
    dataset = wds.WebDataset(files, shardshuffle=100, resampled=False, empty_check=False, nodesplitter=None)
    dataset = dataset.repeat().shuffle(SHUFFLE).map(prepare).batched(BATCH, collation_fn=_stack)
    return iter(DataLoader(dataset, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None))


def _stack(samples: list[Any]) -> list[torch.Tensor]:
    return [torch.stack(values) for values in zip(*samples, strict=True)]


def ours(folder: Path, workers: int) -> Iterator[Any]:
    source = open_split(folder, "train", "label")
    augmentation = Augmentation(crop=CROP, flip=True)
    return loader(TrainStream(source, views(), augmentation, batch=BATCH, shuffle=SHUFFLE), workers, CPU)


def ours_of_others(folder: Path, workers: int) -> Iterator[Any]:
    """The same shards, opened by a pattern like foreign shards."""
    source = open_split(f"{folder.absolute()}/train-*.tar", "train", "label")
    augmentation = Augmentation(crop=CROP, flip=True)
    return loader(TrainStream(source, views(), augmentation, batch=BATCH, shuffle=SHUFFLE), workers, CPU)


def samples_per_second(start: Callable[[Path, int], Iterator[Any]], folder: Path, workers: int) -> float:
    """Samples per second over two epochs, after a warm-up epoch that caches and hashes files and fills buffers."""
    batches = start(folder, workers)
    for _ in range(SCENES // BATCH):
        next(batches)
    steps = 2 * SCENES // BATCH
    begun = time.perf_counter()
    for _ in range(steps):
        next(batches)
    return steps * BATCH / (time.perf_counter() - begun)


MEASURE = """
import sys
from pathlib import Path
import cv2, torch
from benchmarks import loader as own
folder = Path(sys.argv[1])
if not folder.exists():
    scenes = own.tabletop.plan(own.SCENES, 0, 128)
    own.pack(scenes, folder, fractions={"train": 1.0}, shard_bytes=8_000_000, workers=2)
cv2.setNumThreads(0)
torch.set_num_threads(1)
print(own.samples_per_second(own.ours, folder, int(sys.argv[2])))
"""


def in_a_new_process(checkout: Path, folder: Path, workers: int) -> float:
    """Samples per second with the code of a checkout, which packs the same scenes into `folder`."""
    command = [sys.executable, "-c", MEASURE, str(folder.absolute()), str(workers)]
    environment = os.environ | {"PYTHONPATH": str(checkout.absolute())}
    done = subprocess.run(command, cwd=checkout, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split()[-1])


def compare() -> None:
    folder = FOLDER / "data"
    if not (folder / MANIFEST).exists():
        pack(tabletop.plan(SCENES, 0, 128), folder, fractions={"train": 1.0}, shard_bytes=8_000_000, workers=2)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    for workers in (0, 1, 2):
        rounds = [
            [samples_per_second(start, folder, workers) for start in (bare, ours, ours_of_others)] for _ in range(3)
        ]
        plain, packed, foreign = (median(column) for column in zip(*rounds, strict=True))
        ratios = [median(own[place] / own[0] for own in rounds) for place in (1, 2)]
        print(
            f"{workers} workers: webdataset {plain:.0f} samples/s; packed {packed:.0f}, ratio {ratios[0]:.2f}; "
            f"by pattern {foreign:.0f}, ratio {ratios[1]:.2f}",
            flush=True,
        )


def compare_with(clone: Path) -> None:
    """Print the ratio of the packed stream to that of another checkout, each in new processes."""
    checkouts = Path(__file__).parents[1], clone
    for workers in (0, 1, 2):
        rounds = [
            [in_a_new_process(one, FOLDER / str(place), workers) for place, one in enumerate(checkouts)]
            for _ in range(5)
        ]
        now, before = (median(column) for column in zip(*rounds, strict=True))
        ratio = median(own[0] / own[1] for own in rounds)
        print(f"{workers} workers: now {now:.0f} samples/s, before {before:.0f}, ratio {ratio:.2f}", flush=True)


def write_small(folder: Path, samples: int) -> None:
    """Write photos and depth maps of 4 x 4 pixels, 50,000 per shard."""
    folder.mkdir(parents=True)
    members = {
        "rgb.png": cv2.imencode(".png", np.full((4, 4, 3), 100, np.uint8))[1].tobytes(),
        "depth.png": cv2.imencode(".png", np.full((4, 4), 1000, np.uint16))[1].tobytes(),
    }
    shards = []
    for number in range(samples // 50_000):
        keys = range(number * 50_000, (number + 1) * 50_000)
        shards.append(write_shard(folder / f"train-{number:06d}.tar", ((f"s{key:08d}", members) for key in keys)))
    about = Dataset(
        name="small",
        recipe="bench",
        fields=dict.fromkeys(members, samples),
        splits={"train": shards},
        classes={},
        units={},
        split_rule="all",
    )
    (folder / MANIFEST).write_text(about.model_dump_json())


def _write_small(_: int, folder: Path, samples: int) -> None:
    write_small(folder, samples)


def memory(samples: int) -> None:
    """Print resident memory of the training process and of its worker after each tenth of the samples."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "data"
        # In another process: otherwise, the worker would inherit the heap left over from writing and copy it page by
        # page.
        spawn(_write_small, (folder, samples))
        small = {"teacher": View(RGB(), 4), "student": View(Depth(), 4)}
        stream = TrainStream(open_split(folder, "train", "label"), small, batch=250, shuffle=SHUFFLE)
        batches = loader(stream, 1, CPU)
        next(batches)
        processes, found = [psutil.Process(), *(psutil.Process(worker.pid) for worker in active_children())], []
        for step in range(1, samples // 250):
            next(batches)
            if (step + 1) % (samples // 2500) == 0:
                own = [process.memory_info().rss / 2**20 for process in processes]
                found.append(own)
                print(f"{(step + 1) * 250:,} samples: {own[0]:.0f} MiB, worker {own[1]:.0f} MiB", flush=True)
        late = np.array(found[1:])
        print(f"largest change after the first tenth: {np.abs(late / late[0] - 1).max():.1%}")


def on_small_photos(profiled: bool, compared: bool, rounds: int, samples: int = 5000) -> None:
    from benchmarks import loader_peers, loader_profile, small_photos  # training is not imported for --memory

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = small_photos.write(Path(temporary) / "data", samples)
        steps = samples // BATCH
        if profiled:
            loader_profile.profile(folder, rounds)
        if compared:
            loader_peers.compare(folder, steps, rounds)
            loader_peers.compare_steps(folder, max(steps // 4, 1), rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, metavar="CLONE", help="compare with the stream of this checkout")
    parser.add_argument("--memory", type=int, metavar="SAMPLES")
    parser.add_argument("--profile", action="store_true", help="print the CPU time by stage, on small photos")
    parser.add_argument("--peers", action="store_true", help="compare with other loaders and in a KD step, likewise")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of --profile and --peers")
    options = parser.parse_args()
    if options.memory:
        memory(options.memory)
    elif options.profile or options.peers:
        on_small_photos(options.profile, options.peers, options.rounds)
    else:
        FOLDER.mkdir(parents=True, exist_ok=True)
        if options.before:
            compare_with(options.before)
        else:
            compare()
        shutil.rmtree(FOLDER)


if __name__ == "__main__":
    main()
