"""Files beside the user's data may have the names of our packages, or of libraries: every command still works."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CLASHES = ["losses.py", "modalities.py", "pipeline.py", "pipeline/__init__.py", "torch.py", "numpy.py", "random.py"]
CLASH = 'raise ImportError("a file of the working folder stands in for a module")\n'
MINE = "from losses import CrossEntropy\n\n\nclass Mine(CrossEntropy):\n    pass\n"
CONFIG = """
run: runs/one
data: {shards: data, batch_size: 16, workers: 2}
student: {modality: rgb, encoder: {name: cnn5, width: 4, size: 16}}
losses: {cross_entropy: {}, "mine.loss:Mine": {}}
train: {steps: 2, warmup: 1}
"""
SCRIPT = f"""#!{sys.executable}
import sys
from wcord.__main__ import main
if __name__ == '__main__':
    sys.exit(main())
"""
"""What an installation makes of `[project.scripts]`."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with a package of the user's own, and beside it the `wcord` script."""
    work, script = tmp_path / "work", tmp_path / "bin" / "wcord"
    for path, text in {
        work / "mine" / "__init__.py": "",
        work / "mine" / "loss.py": MINE,
        work / "config.yaml": CONFIG,
        script: SCRIPT,
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    script.chmod(0o755)
    return work


def clash(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(CLASH)


def start(folder: Path, program: Sequence[str], *arguments: str) -> str:
    begin = [str(folder.parent / "bin" / "wcord")] if program == ["wcord"] else [sys.executable, *program]
    done = subprocess.run(
        [*begin, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


PACK = ("pack", "tabletop", "data", "--scenes", "60", "--size", "32", "--workers", "2", "--shard-mb", "0.1")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "names"),
    [
        pytest.param(["wcord"], [*CLASHES, "wcord.py"], id="script"),
        pytest.param(["-m", "wcord"], CLASHES, id="wcord"),
        pytest.param(["-m", "pipeline"], CLASHES[:2] + CLASHES[4:], id="pipeline"),
    ],
)
def test_commands_work_beside_all_of_them(program: list[str], names: list[str], folder: Path) -> None:
    """Also in the processes that pack and that load; and the loss in the user's own package is found.

    Beside all of them no import may look there, so none does beside each alone.
    """
    clash(folder, *names)
    start(folder, program, *PACK)
    if program[-1] == "wcord":
        start(folder, program, "train", "config.yaml")


def test_python_m_looks_in_the_working_folder_last(folder: Path) -> None:
    clash(folder, *CLASHES)
    start(folder, ["-m", "wcord"], "config", "explain", "losses.kd")


@pytest.mark.slow
def test_ranks_that_accelerate_starts_work_beside_them(folder: Path) -> None:
    accelerate = Path(sys.executable).with_name("accelerate")
    start(folder, ["-m", "wcord"], *PACK)
    clash(folder, *CLASHES)
    options = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    launch = [str(accelerate), "launch", *options, "--dynamo_backend", "no", "-m", "wcord"]
    assert "training on 2 x cpu" in start(folder, launch, "train", "config.yaml")
