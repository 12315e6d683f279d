"""How long a person waits after a command: `wcord --help`, two config commands, and the first step of a training.

python -m benchmarks.startup

Prints a Markdown table with medians and ranges over the rounds, and the limit of each command. The data set of the
trainings is a small one of the demo's kind, which the benchmark packs itself.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import psutil
import torch

from benchmarks.kill_and_resume import kill_all
from pipeline.packing.pack import pack
from pipeline.packing.recipes import tabletop

WCORD = [sys.executable, "-m", "wcord"]
SHORT_LIMIT, TRAIN_LIMIT = 0.5, 6.0
"""Seconds that a person may wait."""

SHORT = ("--help", "config list", "config explain losses.wcord")
FIRST_STEP = "step 1/"
"""The start of the line that a training logs after its first step."""


@dataclass(frozen=True)
class Waited:
    """What one start took.

    Attributes:
        wall: Seconds until the end of the command, or until the first step.
        cpu: CPU seconds of all of its processes until then.
    """

    wall: float
    cpu: float


def until_end(arguments: Sequence[str]) -> Waited:
    """Run a command of wcord to its end."""
    before, begun = os.times(), time.perf_counter()
    subprocess.run([*WCORD, *arguments], stdout=subprocess.DEVNULL, check=True)
    after, wall = os.times(), time.perf_counter() - begun
    user, system = (getattr(after, part) - getattr(before, part) for part in ("children_user", "children_system"))
    return Waited(wall, user + system)


def until_first_step(arguments: Sequence[str]) -> Waited:
    """Run a training until it logs its first step, then kill it."""
    begun = time.perf_counter()
    with subprocess.Popen([*WCORD, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        output = ""
        for line in process.stdout:
            output += line
            if line.startswith(FIRST_STEP):
                waited = Waited(time.perf_counter() - begun, cpu_seconds(process.pid))
                kill_all(process)
                return waited
    raise SystemExit(f"wcord {' '.join(arguments)} logged no first step:\n{output}")


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a process and of its running children so far."""
    process = psutil.Process(pid)
    used = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return sum(times.user + times.system for times in used)


def trainings(folder: Path, scenes: int) -> dict[str, list[str]]:
    """Pack the data and train a teacher for one step; return the commands of the demo's trainings."""
    pack(tabletop.plan(scenes), folder / "data", workers=os.cpu_count() or 1)
    logged = ["train.log_every=1", f"data.shards={folder / 'data'}"]
    teacher = ["train", "rgb_teacher", *logged, f"run={folder / 'teacher'}"]
    until_end(["-q", *teacher, "train.steps=1", "train.warmup=0"])
    student = ["train", "rgb_to_depth", *logged, f"teacher.run={folder / 'teacher'}", f"run={folder / 'student'}"]
    again = f"run={folder / 'teacher_again'}"
    return {
        "train rgb_teacher": [*teacher, again, "--overwrite"],
        "train rgb_to_depth": [*student, "evaluation.baselines=[]", "--overwrite"],
    }


def measure(rounds: int, scenes: int) -> dict[str, list[Waited]]:
    """Command -> what it took in each round. The rounds alternate between the commands, since machines drift."""
    with tempfile.TemporaryDirectory() as temporary:
        measures = {name: partial(until_end, name.split()) for name in SHORT}
        for name, command in trainings(Path(temporary), scenes).items():
            measures[name] = partial(until_first_step, command)
        found: dict[str, list[Waited]] = {name: [] for name in measures}
        for _ in range(rounds):
            for name, one in measures.items():
                found[name].append(one())
    return found


def table(found: Mapping[str, Sequence[Waited]]) -> str:
    """The Markdown table: medians and ranges in seconds."""
    rows = ["| command | until | wall time, s | CPU time, s | limit, s |", "| --- | --- | ---: | ---: | ---: |"]
    for name, times in found.items():
        end, limit = ("first step", TRAIN_LIMIT) if name.startswith("train ") else ("its end", SHORT_LIMIT)
        wall, cpu = (spread([getattr(one, part) for one in times]) for part in ("wall", "cpu"))
        rows.append(f"| `wcord {name}` | {end} | {wall} | {cpu} | {limit:g} |")
    return "\n".join(rows)


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scenes", type=int, default=320, help="number of scenes of the data set")
    options = parser.parse_args(arguments)
    found = measure(options.rounds, options.scenes)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"{cores} cores, torch {torch.__version__}, Python {sys.version.split()[0]}{load}; {options.rounds} rounds\n")
    print(table(found))


if __name__ == "__main__":
    main()
