"""Kill a run at random steps, resume it each time, and compare its weights with an uninterrupted run.

python -m benchmarks.kill_and_resume --kills 20 --processes 1 2
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

STEPS, CHECKPOINT_EVERY = 300, 7
FOLDER = Path("runs/kill_and_resume")
CONFIG = """
run: {folder}/unset
data: {{shards: {folder}/data, batch_size: 16, workers: 2, shuffle: 100, crop: [0.6, 1.0], flip: true}}
teacher: {{run: {folder}/teacher}}
student: {{modality: depth, encoder: {{name: cnn5, width: 8, size: 32}}}}
losses:
  cross_entropy: {{}}
  wcord: {{queue: 64}}
train: {{steps: {steps}, log_every: 1, checkpoint_every: {checkpoint_every}, warmup: 10}}
"""


def wcord(*arguments: str, processes: int = 1) -> list[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [sys.executable, *(launch if processes > 1 else []), "-m", "pipeline", *arguments]


def start(command: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def kill_all(process: subprocess.Popen[Any]) -> None:
    """Kill launcher, ranks and loader workers with SIGKILL."""
    launcher = psutil.Process(process.pid)
    for one in [launcher, *launcher.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            one.kill()


def run(command: list[str], kill_at: int | None = None) -> str:
    """Run to the end, or kill everything at the line of step `kill_at`; return the output."""
    process = start(command)
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if kill_at is not None and line.startswith(f"step {kill_at}/"):
            kill_all(process)
            break
    code = process.wait()
    if kill_at is None and code != 0:
        raise SystemExit(output)
    return output


def weights(name: str) -> dict[str, torch.Tensor]:
    return load_file(FOLDER / name / "student" / "model.safetensors")


def prepare() -> Path:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    path = FOLDER / "student.yaml"
    path.write_text(CONFIG.format(folder=FOLDER, steps=STEPS, checkpoint_every=CHECKPOINT_EVERY))
    run(wcord("pack", "tabletop", str(FOLDER / "data"), "--scenes", "200", "--size", "32", "--shard-mb", "0.3"))
    teacher = ("teacher=null", "losses={cross_entropy: {}}", "student.modality=rgb", "train.steps=20")
    run(wcord("train", str(path), f"run={FOLDER}/teacher", *teacher))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    path = prepare()
    failed = False
    for processes in options.processes:
        names = f"whole{processes}", f"killed{processes}"
        commands = [wcord("train", str(path), f"run={FOLDER}/{name}", processes=processes) for name in names]
        run(commands[0])
        steps = sorted(random.Random(options.seed).sample(range(1, STEPS), options.kills))
        for step in steps:
            run([*commands[1], "--resume"], kill_at=step)
        run([*commands[1], "--resume"])
        whole, killed = map(weights, names)
        same = all(torch.equal(whole[key], killed[key]) for key in whole)
        failed |= not same
        print(
            f"{processes} processes x 2 workers, killed at steps {', '.join(map(str, steps))} of {STEPS}: weights "
            f"{'bit-identical' if same else 'DIFFER'}",
            flush=True,
        )
    sys.exit(failed)


if __name__ == "__main__":
    main()
