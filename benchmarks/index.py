"""Compares `wcord index` with reading the headers of the same shards with tarfile, in paired rounds.

python -m benchmarks.index
"""

from __future__ import annotations

import argparse
import io
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from pipeline.data.shard_index import Wanted, count_shards

SHARDS, SAMPLES = 4, 5_000


def write_shards(folder: Path, size: int) -> list[str]:
    """Write shards with an image of `size` bytes, a caption and JSON per sample."""
    paths = []
    for number in range(SHARDS):
        paths.append(str(folder / f"{number:05d}.tar"))
        with tarfile.open(paths[-1], "w") as tar:
            for sample in range(SAMPLES):
                for suffix, data in {"jpg": bytes(size), "txt": b"a caption", "json": b"{}"}.items():
                    info = tarfile.TarInfo(f"{number:05d}{sample:04d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return paths


def by_tarfile(paths: list[str]) -> int:
    """Count samples with the standard library."""
    keys = set[str]()
    for path in paths:
        with tarfile.open(path) as tar:
            keys.update(name.partition(".")[0] for name in tar.getnames())
    return len(keys)


def by_index(paths: list[str]) -> int:
    """Count samples as `wcord index` does, in one process."""
    with tempfile.TemporaryDirectory() as folder:
        counts = count_shards(paths, Wanted(), Path(folder), 1, lambda _: None)
        return sum(count.samples for count in counts)


def seconds(count: Callable[[list[str]], int], paths: list[str]) -> float:
    """Seconds for one pass over the headers."""
    begun = time.perf_counter()
    assert count(paths) == SHARDS * SAMPLES
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=20_000, help="size of an image in bytes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = write_shards(Path(folder), options.bytes)
        by_tarfile(paths)  # from here on, the files are in the page cache
        rounds = [(seconds(by_tarfile, paths), seconds(by_index, paths)) for _ in range(5)]
    theirs, ours = (median(column) for column in zip(*rounds, strict=True))
    ratio = median(their / own for their, own in rounds)
    print(f"{SHARDS * SAMPLES} samples: tarfile {theirs:.2f} s, wcord index {ours:.2f} s, {ratio:.1f} times as fast")


if __name__ == "__main__":
    main()
