"""Packs masks for `wcord bench configs/bench/segmentation.yaml`.

    python -m benchmarks.segmentation_data --gestures DIR

hands: RGB-D frames of hands with masks, split by clip (index.csv, rgb/, depth/, mask/). tabletop: synthetic scenes.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from benchmarks.matrix_data import FRACTIONS, write_table
from pipeline.packing.pack import pack
from pipeline.packing.recipes import manifest, tabletop
from pipeline.packing.recipes.plan import Plan, add_masks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gestures", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/segmentation_data"))
    options = parser.parse_args()
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for name, plan in {"hands": hands(options.gestures.resolve(), out), "tabletop": tabletop.plan(1000)}.items():
        pack(plan, out / name, fractions=FRACTIONS)


def hands(source: Path, out: Path) -> Plan:
    """The frames that have a mask, which is 255 on the hand."""
    rows = [row for row in csv.DictReader((source / "index.csv").open()) if row["mask"]]
    fields = {"rgb": f"{source}/rgb/{{id}}.jpg", "depth": f"{source}/depth/{{id}}.png", "mask": f"{source}/{{mask}}"}
    plan = manifest.plan(write_table(out / "hands.csv", rows), fields, ["class"], group="{subject}/{class}/{clip}")
    return add_masks(plan, ["mask=background:0,hand:255"])


if __name__ == "__main__":
    main()
