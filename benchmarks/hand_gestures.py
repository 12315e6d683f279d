"""Depth students of an RGB teacher on real hand gestures with 10 % of the labels, every method on the same budget.

    python -m benchmarks.hand_gestures PATH_TO_HAND_GESTURES_RGBD [--foreign PATH_TO_SIGN_DIGITS]

The gestures are packed by clip. The foreign teacher learns the classes of other photos (a folder per class) and never
sees a gesture's label, so its logits cannot be distilled.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.study import CORES, METHODS, WITHOUT_KD, students, table, train_and_evaluate
from pipeline.pack import pack
from pipeline.recipes import folders, manifest

CONFIGS = Path(__file__).parent / "configs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gestures", type=Path, help="folder with index.csv, hand_rgb/ and hand_depth/")
    parser.add_argument("--foreign", type=Path, help="folder of RGB photos in a folder per class")
    parser.add_argument("--out", type=Path, default=Path("runs/gestures"))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    out: Path = options.out
    plan = manifest.plan(
        options.gestures / "index.csv",
        {"rgb": "hand_rgb/{id}.jpg", "depth": "hand_depth/{id}.png"},
        labels=["class", "subject"],
        group="{subject}/{class}/{clip}",
    )
    pack(plan, out / "data", workers=CORES)
    studies = {"shared": (out / "data", METHODS)}
    if options.foreign:
        foreign = folders.plan(options.foreign, {"rgb": "."}, label_from="parent")
        pack(foreign, out / "foreign_data", workers=CORES)
        studies["foreign"] = (out / "foreign_data", WITHOUT_KD)
    with ThreadPoolExecutor(CORES) as pool:
        teachers = [
            pool.submit(
                train_and_evaluate, CONFIGS / "gestures_teacher.yaml", out / f"{name}_teacher", f"data.shards={data}"
            )
            for name, (data, _) in studies.items()
        ]
        for teacher in teachers:
            teacher.result()
        runs = [
            run
            for name, (_, methods) in studies.items()
            for run in students(
                pool,
                CONFIGS / "gestures_student.yaml",
                out / name,
                methods,
                out / f"{name}_teacher",
                options.seeds,
                f"data.shards={out / 'data'}",
            )
        ]
        for run in runs:
            run.result()
    for name, (_, methods) in studies.items():
        table(out / name, {"labels": out / "shared"} | dict.fromkeys(methods, out / name), options.seeds)


if __name__ == "__main__":
    main()
