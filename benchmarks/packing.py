"""Compares `pack` with a plain tar writer that decodes the same images; measures the memory of `pack` and `check`.

python -m benchmarks.packing
python -m benchmarks.packing --memory 50000 100000 200000

The plain writer is the standard library's tarfile, on which webdataset's TarWriter is based: it reads the files,
decodes each image to validate it, and writes the files unchanged. `pack` does the same, and also hashes the shards and
adds a metadata member to each sample. Memory is the peak unique set size (USS) of the process that reads the table,
plans and packs, or checks.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from io import BytesIO
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import psutil

from pipeline.packing.check import check
from pipeline.packing.pack import pack
from pipeline.packing.recipes import manifest
from pipeline.packing.recipes.plan import Plan, SourceSample

PAIRS, SIZE, ROUNDS = 600, 480, 5


def write_files(folder: Path) -> Plan:
    """Write noisy photos and smooth depth maps to files."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(500, 4000, SIZE * SIZE).reshape(SIZE, SIZE)
    samples = []
    for number in range(PAIRS):
        small = rng.integers(0, 255, (SIZE // 8, SIZE // 8, 3), np.uint8)
        depth = (ramp + rng.integers(0, 8, ramp.shape)).astype(np.uint16)
        files = {"rgb.jpg": folder / f"{number}.jpg", "depth.png": folder / f"{number}.png"}
        cv2.imwrite(str(files["rgb.jpg"]), cv2.resize(small, (SIZE, SIZE)))
        cv2.imwrite(str(files["depth.png"]), depth)
        size = sum(path.stat().st_size for path in files.values())
        named = {member: str(path) for member, path in files.items()}
        samples.append(SourceSample(f"s{number:06d}", f"s{number:06d}", size, "0", named))
    return Plan("bench", "bench", {}, samples)


def bare(plan: Plan, out: Path) -> None:
    with tarfile.open(out, "w") as tar:
        for sample in plan.samples:
            for member, path in sample.files.items():
                data = Path(path).read_bytes()
                if cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) is None:
                    raise ValueError(path)
                info = tarfile.TarInfo(f"{sample.key}.{member}")
                info.size = len(data)
                tar.addfile(info, BytesIO(data))
    with out.open("rb") as file:
        os.fsync(file.fileno())


def compare() -> None:
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "files").mkdir()
        plan = write_files(folder / "files")
        megabytes = sum(sample.size for sample in plan.samples) / 1e6
        speeds: list[tuple[float, float]] = []
        for turn in range(ROUNDS + 1):
            begun = time.perf_counter()
            bare(plan, folder / "bare.tar")
            between = time.perf_counter()
            pack(plan, folder / f"packed{turn}", fractions={"train": 1.0}, max_refused=0)
            speeds.append((megabytes / (between - begun), megabytes / (time.perf_counter() - between)))
    speeds = speeds[1:]  # the first round is a warm-up that caches the files
    ratios = [own / other for other, own in speeds]
    a, b = (median(column) for column in zip(*speeds, strict=True))
    print(
        f"bare writer {a:.0f} MB/s, pack {b:.0f} MB/s, ratio {median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}); {PAIRS} pairs, {megabytes:.0f} MB, one process"
    )


def write_table(folder: Path, samples: int) -> Path:
    """Write a table of samples in separate groups, which share a hundred tiny photos."""
    for number in range(100):
        (folder / f"{number}.png").write_bytes(cv2.imencode(".png", np.full((4, 4, 3), number, np.uint8))[1].tobytes())
    with (folder / "index.csv").open("w") as file:
        file.write("id,photo,class,caption\n")
        file.writelines(f"s{n:08d},{n % 100}.png,c{n % 7},a thing\n" for n in range(samples))
    return folder / "index.csv"


def measure(what: str, samples: int, folder: Path) -> None:
    """Pack a table of tiny samples, or check the result, and print peak memory and time."""
    folder.mkdir(exist_ok=True)
    table = write_table(folder, samples) if what == "pack" else None
    process, seen, ended = psutil.Process(), [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            seen.append(process.memory_full_info().uss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    begun = time.perf_counter()
    if table:
        plan = manifest.plan(table, {"rgb": "photo", "text": "caption"}, ["class"])
        pack(plan, folder / "data", shard_bytes=2_000_000)
    else:
        assert not check(folder / "data", processes=1).faults
    taken = time.perf_counter() - begun
    ended.set()
    watcher.join()
    print(f"{what}: {samples:,} samples: at most {max(seen) / 2**20:.0f} MiB, {taken:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", type=int, nargs="+", metavar="SAMPLES")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure(options.one[0], int(options.one[1]), Path(options.one[2]))
    elif options.memory:
        for samples in options.memory:
            with tempfile.TemporaryDirectory() as folder:
                for what in ("pack", "check"):  # each in a separate process
                    command = [
                        sys.executable,
                        "-m",
                        "benchmarks.packing",
                        "--one",
                        what,
                        str(samples),
                        folder,
                    ]
                    done = subprocess.run(command, check=True, capture_output=True, text=True)
                    print(done.stdout.splitlines()[-1], flush=True)
    else:
        compare()


if __name__ == "__main__":
    main()
