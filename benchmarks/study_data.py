"""The datasets of the study: hand gestures in RGB and depth, and CIFAR-10, with validation splits."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.packing.pack import pack
from pipeline.packing.recipes import manifest

CORES = os.cpu_count() or 1


def pack_gestures(source: Path, out: Path) -> None:
    """Pack hand gestures with 3 labels: the class; the class if the other task's teacher knows it; the class if not.

    Splits consist of whole sessions: in a clip, one person shows all gestures in front of one background. One clip
    (with all three people) is the test split, and one is the validation split.
    """
    rows = list(csv.DictReader((source / "index.csv").open()))
    taught = set(sorted({row["class"] for row in rows})[::2])
    for row in rows:
        row["split"] = {"clip03": "test", "clip04": "val"}.get(row["clip"], "train")
        row["taught"], row["untaught"] = (row["class"], "") if row["class"] in taught else ("", row["class"])
    plan = manifest.plan(
        _write_table(out.with_suffix(".csv"), rows),
        {"rgb": f"{source}/hand_rgb/{{id}}.jpg", "depth": f"{source}/hand_depth/{{id}}.png"},
        labels=["class", "taught", "untaught"],
        group="{subject}/{class}/{clip}",
        split="split",
    )
    pack(plan, out, workers=CORES)


def pack_cifar(source: Path, out: Path) -> None:
    """Pack CIFAR-10; the last fifth of the training images of every class is the validation split."""
    rows = []
    for split in "train", "test":
        for folder in sorted((source / split).iterdir()):
            files = sorted(folder.iterdir())
            for number, file in enumerate(files):
                held_out = split == "train" and number >= 0.8 * len(files)
                rows.append({"rgb": str(file), "class": folder.name, "split": "val" if held_out else split})
    plan = manifest.plan(_write_table(out.with_suffix(".csv"), rows), {"rgb": "rgb"}, labels=["class"], split="split")
    pack(plan, out, workers=CORES)


def _write_table(path: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
