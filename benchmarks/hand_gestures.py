"""Depth students of an RGB teacher on real hand gestures with 10 % of the labels, every method on the same budget.

    python -m benchmarks.hand_gestures PATH_TO_HAND_GESTURES_RGBD [--foreign PATH_TO_SIGN_DIGITS]

Packs the data by clip, trains the teachers, then every method with every seed (a seed sets the initial weights, the
order of samples and which labels are seen; the methods share it, so they are paired), evaluates all and writes the
table. Finished runs are kept: the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.compare import compare
from pipeline.pack import pack
from pipeline.recipes import folders, manifest

CONFIGS = Path(__file__).parent / "configs"
CORES = os.cpu_count() or 1
CE, KD, WCORD = "cross_entropy: {}", "kd: {weight: 3}", "wcord: {}"
SHARED = {
    "labels": f"{{{CE}}}",
    "kd": f"{{{CE}, {KD}}}",
    "wcord": f"{{{CE}, {WCORD}}}",
    "wcord_kd": f"{{{CE}, {KD}, {WCORD}}}",
}
FOREIGN = {
    "labels": SHARED["labels"],
    "info_nce": f"{{{CE}, info_nce: {{weight: 0.5}}}}",
    "wcord": SHARED["wcord"],
}


def command(*arguments: str) -> None:
    """One `wcord` command on one thread, so that as many run side by side as there are cores."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"wcord {' '.join(arguments)}\n{done.stdout[-1000:]}{done.stderr[-2000:]}")


def train_and_evaluate(config: Path, run: Path, *overrides: str) -> None:
    if (run / "results.json").exists():
        return
    command("train", str(config), f"run={run}", *overrides, "--resume")
    command("evaluate", str(run))
    print(f"done: {run}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gestures", type=Path, help="folder with index.csv, hand_rgb/ and hand_depth/")
    parser.add_argument(
        "--foreign", type=Path, help="folder of RGB photos in a folder per class: another teacher's task"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/gestures"))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    out: Path = options.out
    pack(
        manifest.plan(
            options.gestures / "index.csv",
            {"rgb": "hand_rgb/{id}.jpg", "depth": "hand_depth/{id}.png"},
            labels=["class", "subject"],
            group="{subject}/{class}/{clip}",
        ),
        out / "data",
        workers=CORES,
    )
    studies = {"shared": (f"data.shards={out / 'data'}", SHARED)}
    if options.foreign:
        pack(folders.plan(options.foreign, {"rgb": "."}, label_from="parent"), out / "foreign_data", workers=CORES)
        studies["foreign"] = (f"data.shards={out / 'foreign_data'}", FOREIGN)
    with ThreadPoolExecutor(CORES) as pool:
        teachers = [
            pool.submit(train_and_evaluate, CONFIGS / "gestures_teacher.yaml", out / f"{name}_teacher", data)
            for name, (data, _) in studies.items()
        ]
        for teacher in teachers:
            teacher.result()
        students = [
            pool.submit(
                train_and_evaluate,
                CONFIGS / "gestures_student.yaml",
                out / name / f"{method}_s{seed}",
                f"seed={seed}",
                f"data.shards={out / 'data'}",
                f"losses={losses}",
                *([] if method == "labels" else [f"teacher.run={out / f'{name}_teacher'}"]),
            )
            for seed in range(options.seeds)
            for name, (_, methods) in studies.items()
            for method, losses in methods.items()
        ]
        for student in students:
            student.result()
    for name, (_, methods) in studies.items():
        runs = [out / name / f"{method}_s{seed}" for method in methods for seed in range(options.seeds)]
        print(f"\n## {name} teacher\n\n{compare(runs, out / name, baseline='labels').markdown()}")


if __name__ == "__main__":
    main()
