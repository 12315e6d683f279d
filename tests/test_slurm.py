"""The Slurm scripts with stand-ins for Slurm: a warned run saves, is requeued and resumes; an array packs one set."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sources import make_source

from pipeline import config as configs
from pipeline.data.manifest import load_dataset
from pipeline.runs.checkpoint import list_checkpoints

ROOT = Path(__file__).parents[1]
SCRIPT, PACK = (ROOT / "examples" / "slurm" / name for name in ("train.sh", "pack.sh"))
STANDS_FOR = {
    "scontrol": 'if [ "$1" = show ]; then echo localhost; else echo "$*" >> "$WORK/requeued"; fi',
    "scancel": 'kill -TERM "$(cat "$WORK/pid")"',
    "srun": 'shift; echo $$ > "$WORK/pid"; exec "$@"',
    # What it starts instead of two machines: the arguments behind `-m wcord`.
    "accelerate": 'while [ "$1" != wcord ]; do shift; done; shift; exec "$PYTHON" -m wcord "$@"',
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


@pytest.mark.slow
@pytest.mark.parametrize("first", [1, 0])
def test_an_array_packs_one_set(tmp_path: Path, first: int) -> None:
    (tmp_path / "wcord").write_text('#!/bin/bash\nexec "$PYTHON" -m wcord "$@"\n')
    (tmp_path / "wcord").chmod(0o755)
    make_source(tmp_path / "source")
    environment = os.environ | {"PYTHON": sys.executable, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    array = {"SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": str(first), "SLURM_CPUS_PER_TASK": "1"}
    command = ["bash", str(PACK), "folders", str(tmp_path / "source"), str(tmp_path / "set"), "--field", "rgb=photos"]
    for task in (first + 1, first):
        assert not (tmp_path / "set" / "dataset.json").exists()
        own = environment | array | {"SLURM_ARRAY_TASK_ID": str(task)}
        ended = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, check=False)
        assert ended.returncode == 0, ended.stderr
    assert load_dataset(tmp_path / "set").fields == {"rgb.jpg": 30, "meta.json": 30}


@pytest.mark.parametrize("script", [SCRIPT, PACK])
def test_it_is_bash(script: Path) -> None:
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    assert subprocess.run(["bash", str(script)], check=False, capture_output=True).returncode == 2
