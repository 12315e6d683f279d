"""The Slurm script with stand-ins for Slurm: a warning leads to a checkpoint, a requeue, and a run that goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline import config as configs
from pipeline.checkpoint import list_checkpoints

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "slurm" / "train.sh"
STANDS_FOR = {
    "scontrol": 'if [ "$1" = show ]; then echo localhost; else echo "$*" >> "$WORK/requeued"; fi',
    "scancel": 'kill -TERM "$(cat "$WORK/pid")"',
    "srun": 'shift; echo $$ > "$WORK/pid"; exec "$@"',
    # What it starts instead of two machines: the arguments behind `-m pipeline`.
    "accelerate": 'while [ "$1" != pipeline ]; do shift; done; shift; exec "$PYTHON" -m pipeline "$@"',
}
pytestmark = pytest.mark.skipif(not Path("/bin/bash").exists(), reason="needs bash")


@pytest.mark.slow
def test_a_warning_saves_requeues_and_goes_on(make_config: Any, tmp_path: Path) -> None:
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name, body in STANDS_FOR.items():
        (bin_ / name).write_text(f"#!/bin/bash\n{body}\n")
        (bin_ / name).chmod(0o755)
    own = {"WORK": str(tmp_path), "PYTHON": sys.executable, "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}"}
    slurm = {"SLURM_JOB_NODELIST": "a", "SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURM_NODEID": "0"}
    path = make_config()
    run = Path(configs.load(path).run)
    # No checkpoint is due before the end: what is there, the signal has written.
    command = ["bash", str(SCRIPT), str(path), "train.checkpoint_every=100000", "train.log_every=1"]
    environment = os.environ | own | slurm | {"ACCELERATE_USE_CPU": "true"}
    started = subprocess.Popen([*command, "train.steps=100000"], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    for _ in range(600):
        time.sleep(0.1)
        if (run / "metrics.jsonl").is_file() and len((run / "metrics.jsonl").read_text().splitlines()) > 5:
            break
    started.send_signal(signal.SIGUSR1)
    assert started.wait(60) == 0
    assert (tmp_path / "requeued").read_text().strip() == "requeue 7"
    (saved,) = list_checkpoints(run / "checkpoints")
    assert not (run / "student").exists()
    done = int(saved.name[5:])
    again = subprocess.run([*command, f"train.steps={done + 3}"], cwd=ROOT, env=environment, capture_output=True)
    assert again.returncode == 0, again.stderr
    assert (run / "student" / "network.json").exists()
    assert (tmp_path / "requeued").read_text().strip() == "requeue 7"  # ended by itself: not again


def test_it_is_bash() -> None:
    assert subprocess.run(["bash", "-n", str(SCRIPT)], check=False).returncode == 0
    assert subprocess.run(["bash", str(SCRIPT)], check=False, capture_output=True).returncode == 2
