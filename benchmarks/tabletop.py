"""The demo's experiment with several seeds: depth students with 5 % of the labels on generated tabletop scenes.

python -m benchmarks.tabletop
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.study import CE, CORES, students, table, train_and_evaluate
from pipeline.demo import SCENES
from pipeline.pack import pack
from pipeline.recipes import tabletop

DEMO = {"labels": f"{{{CE}}}", "wcord": f"{{{CE}, wcord: {{}}}}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/tabletop"))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    out: Path = options.out
    pack(tabletop.plan(SCENES), out / "data", workers=CORES)
    data = f"data.shards={out / 'data'}"
    train_and_evaluate("rgb_teacher", out / "teacher", data)
    with ThreadPoolExecutor(CORES) as pool:
        for run in students(pool, "rgb_to_depth", out, DEMO, out / "teacher", options.seeds, data, "data.workers=1"):
            run.result()
    table(out, dict.fromkeys(DEMO, out), options.seeds)


if __name__ == "__main__":
    main()
