"""A study: methods x seeds of one experiment, run side by side on one thread each, and the table they make.

A seed sets the initial weights, the order of samples and which labels are seen; the methods share it, so they
are compared in pairs. Finished runs are kept: the same command goes on where it stopped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pipeline.compare import compare

CORES = os.cpu_count() or 1
CE, KD, WCORD = "cross_entropy: {}", "kd: {weight: 3}", "wcord: {relational: 1.5}"
METHODS = {
    "labels": f"{{{CE}}}",
    "kd": f"{{{CE}, {KD}}}",
    "wcord": f"{{{CE}, {WCORD}}}",
    "wcord_kd": f"{{{CE}, {KD}, {WCORD}}}",
}
"""Losses by the name of the method: with the task's own labels only, and with a teacher of the same classes."""

WITHOUT_KD = {
    "info_nce": f"{{{CE}, info_nce: {{weight: 0.5}}}}",
    "wcord": f"{{{CE}, wcord: {{global_weight: 0.5, local_weight: 0.5, relational: 0}}}}",
}
"""With a teacher of other classes; what the labels alone give is the same run as above."""


def train_and_evaluate(config: str | Path, run: Path, *overrides: str) -> None:
    """One run, each command in a process of its own; nothing is done if its results are there."""
    if (run / "results.json").exists():
        return
    _command("train", str(config), f"run={run}", *overrides, "--resume")
    _command("evaluate", str(run))
    print(f"done: {run}", flush=True)


def students(
    pool: ThreadPoolExecutor,
    config: str | Path,
    out: Path,
    methods: Mapping[str, str],
    teacher: Path,
    seeds: int,
    *more: str,
) -> list[Future[None]]:
    """Start every method with every seed."""
    return [
        pool.submit(
            train_and_evaluate,
            config,
            out / f"{method}_s{seed}",
            f"seed={seed}",
            f"losses={losses}",
            f"teacher={'null' if method == 'labels' else f'{{run: {teacher}}}'}",
            *more,
        )
        for seed in range(seeds)
        for method, losses in methods.items()
    ]


def table(out: Path, methods: Mapping[str, Path], seeds: int) -> None:
    """Print a table of methods, each with the folder of its runs, as Markdown; write it, with a plot, into `out`."""
    runs = [folder / f"{method}_s{seed}" for method, folder in methods.items() for seed in range(seeds)]
    print(f"\n## {out}\n\n{compare(runs, out, baseline='labels').markdown()}")


def _command(*arguments: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"wcord {' '.join(arguments)}\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
