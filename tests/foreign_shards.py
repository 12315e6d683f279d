"""Shards as others write them: webdataset's `ShardWriter`, img2dataset, and what the `datasets` library reads."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import count, islice
from pathlib import Path

import webdataset
from shapes_dataset import CLASSES, members

Sample = tuple[str, Mapping[str, bytes]]


def photo(number: int) -> bytes:
    """A photo of a shape of class `number % 3`, as JPEG."""
    return members(number)["rgb.jpg"]


def captioned(number: int, key: str = "") -> Sample:
    """A photo with caption, class and JSON."""
    name = CLASSES[number % 3]
    about = {"caption": f"a photo of a {name}", "category": name, "clip": f"c{number // 4}", "labels": {"kind": name}}
    return key or f"{number:09d}", {
        "jpg": photo(number),
        "txt": f"a photo of a {name}, number {number}".encode(),
        "cls": str(number % 3).encode(),
        "json": json.dumps(about).encode(),
    }


def tiny(number: int, key: str = "") -> Sample:
    """A caption alone, for where samples are many."""
    return key or f"{number:09d}", {"txt": f"number {number}".encode()}


def plain_tar(path: Path, samples: Iterable[Sample]) -> Path:
    """A tar by the standard library, members in the order that they are given in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, held in samples:
            for extension, data in held.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def shard_writer(folder: Path, samples: Iterable[Sample], maxcount: int) -> list[Path]:
    """Shards by webdataset's own writer, of `maxcount` samples; the last one has the rest."""
    folder.mkdir(parents=True, exist_ok=True)
    with webdataset.ShardWriter(str(folder / "%05d.tar"), maxcount=maxcount, verbose=0) as writer:
        for key, held in samples:
            writer.write({"__key__": key, **held})
    return sorted(folder.glob("*.tar"))


def img2dataset(folder: Path, sizes: Sequence[int], lacking: Collection[int] = ()) -> list[Path]:
    """`00000.tar` with photos, captions and JSON, `00000_stats.json` beside; samples of `lacking` have no caption."""
    number, paths = 0, []
    for shard, size in enumerate(sizes):
        samples = []
        for place in range(size):
            _, held = captioned(number)
            without = {"cls"} | ({"txt"} if number in lacking else set())
            samples.append((f"{shard:05d}{place:04d}", {k: v for k, v in held.items() if k not in without}))
            number += 1
        paths.append(plain_tar(folder / f"{shard:05d}.tar", samples))
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps({"count": size, "successes": size}))
    return paths


def hugging_face(folder: Path, splits: Mapping[str, Sequence[int]]) -> Path:
    """`data/train-0000.tar` with photos, depth maps and classes, as `load_dataset("webdataset")` reads them."""
    numbers = count()
    for split, sizes in splits.items():
        for shard, size in enumerate(sizes):
            samples = []
            for number in islice(numbers, size):
                held = {"jpg": photo(number), "depth.png": members(number)["depth.png"], "cls": b"%d" % (number % 3)}
                samples.append((f"{number:06x}", held))
            plain_tar(folder / "data" / f"{split}-{shard:04d}.tar", samples)
    return folder


def keys_by_webdataset(paths: Iterable[str | Path]) -> list[str]:
    """The keys that webdataset itself yields, read to the end."""
    urls = [str(path) for path in paths]
    return [sample["__key__"] for sample in webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)]
