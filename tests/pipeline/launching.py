"""Runs under a launcher, several processes of this machine."""

from __future__ import annotations

import os
import subprocess
import sys


def launch(
    arguments: list[str], program: tuple[str, ...] = ("-m", "pipeline"), processes: int = 2
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", "0"]
    return subprocess.run(
        [*command, "--standalone", *program, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
