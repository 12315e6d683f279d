"""What the tests of packing pack: small pairs, tables of them, and ways to read them back."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import soundfile
import webdataset

from pipeline.data import manifest as shards
from pipeline.packing.recipes import manifest
from pipeline.packing.recipes.plan import Plan

CLASSES = ("cup", "plate", "spoon")
FIELDS = {"rgb": "photos/{id}.jpg", "depth": "maps/{id}.png"}


def jpeg(seed: int) -> bytes:
    image = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), np.uint8)
    return cv2.imencode(".jpg", image)[1].tobytes()


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


def depth_map(seed: int) -> bytes:
    return png(np.random.default_rng(seed).integers(400, 3000, (12, 16)).astype(np.uint16))


def make_source(folder: Path, count: int = 30) -> Path:
    """Pairs in 10 clips of three classes, listed in `index.csv`: id, class, room, clip, caption."""
    (folder / "photos/a").mkdir(parents=True)
    (folder / "maps/a").mkdir(parents=True)
    rows = []
    for n in range(count):
        name, clip = f"a/{n:03d}", n % 10
        (folder / f"photos/{name}.jpg").write_bytes(jpeg(n))
        (folder / f"maps/{name}.png").write_bytes(depth_map(n))
        rows.append([name, CLASSES[clip % 3], f"room{n % 2}", f"clip{clip}", f"a thing, number {n}"])
    with (folder / "index.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "class", "room", "clip", "caption"], *rows])
    return folder / "index.csv"


def wav(samples: int = 50, announced: int | None = None, sound: bytes = b"\1\2") -> bytes:
    form = b"fmt \x10\0\0\0\1\0\1\0" + (8000).to_bytes(4, "little") + (16000).to_bytes(4, "little") + b"\2\0\x10\0"
    size = 2 * samples if announced is None else announced
    body = b"WAVE" + form + b"data" + size.to_bytes(4, "little") + sound * samples
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def sound_file(samples: np.ndarray, kind: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 8000, format=kind, subtype=subtype)
    return buffer.getvalue()


def with_column(table: Path, name: str, values: Callable[[dict[str, str]], str]) -> None:
    rows = list(csv.DictReader(table.open()))
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], name])
        writer.writeheader()
        writer.writerows(row | {name: values(row)} for row in rows)


def plan_of(table: Path, **options: Any) -> Plan:
    return manifest.plan(table, **({"fields": FIELDS, "labels": ["class", "room"], "group": "clip"} | options))


def content(folder: Path) -> dict[str, bytes]:
    """Everything that a reader of the dataset sees, and nothing that packing keeps for itself."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def samples_in(folder: Path, split: str) -> list[dict[str, Any]]:
    urls = [str(folder / shard.file) for shard in shards.load_dataset(folder).splits[split]]
    return list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))


def refusals(out: Path) -> dict[str, str]:
    lines = (out / "refused.jsonl").read_text().splitlines()
    return {Path(line["file"]).name: line["reason"] for line in map(json.loads, lines)}
