"""The demo experiment with several seeds: depth students with 5 % of the labels on synthetic tabletop scenes.

python -m benchmarks.tabletop
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks.study import print_table, teach, wait
from benchmarks.study_data import CORES
from benchmarks.together import train_together
from pipeline import config as configs
from pipeline.cli.demo import SCENES
from pipeline.config import Config
from pipeline.packing.pack import pack
from pipeline.packing.recipes import tabletop

POSITIONS = "losses={cross_entropy: {}, wcord: {}, position_transport: {weight: 20, layer: -2}}"
STUDENTS: dict[str, tuple[str, ...]] = {
    "labels": ("depth_labels",),
    "wcord": ("rgb_to_depth",),
    "wcord + positions": ("rgb_to_depth", POSITIONS),
}
"""Name in the table -> shipped config and overrides."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/tabletop"))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    out: Path = options.out
    pack(tabletop.plan(SCENES), out / "data", workers=CORES)
    teach(out / "teacher", "rgb_teacher", [f"data.shards={out / 'data'}"])
    with ProcessPoolExecutor(CORES, mp_context=get_context("spawn")) as pool:
        wait([pool.submit(train_together, students(out, seed)) for seed in range(options.seeds)])
    print_table([out / f"{name}_s{seed}" for name in STUDENTS for seed in range(options.seeds)], out, "labels")


def students(out: Path, seed: int) -> list[Config]:
    found = []
    for name, (config, *own) in STUDENTS.items():
        overrides = [f"run={out / f'{name}_s{seed}'}", f"seed={seed}", f"data.shards={out / 'data'}"]
        teacher = [f"teacher.run={out / 'teacher'}"] if name != "labels" else []
        found.append(configs.load(config, [*overrides, *teacher, *own, "data.workers=1"]))
    return found


if __name__ == "__main__":
    main()
