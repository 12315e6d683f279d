"""Run every command in the `sh` blocks of the README and of the pages named below, in order, in one empty folder that
holds what they speak of.

Trainings are cut to a few steps; `make` is run by .ci/run itself. YAML blocks whose first line is `# name.yaml` become
files. Exits with 1 at the first command that fails.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
STEPS = "train.steps=6"
PAGES = ("README.md", "docs/taking-a-student-away.md", "docs/long-runs.md", "docs/config-reference.md")
GPU_ONLY = "--num_processes 8"


def recordings(folder: Path) -> None:
    """A folder of paired photos and depth maps as the README describes it."""
    from pipeline import tabletop

    for index in range(160):
        scene = tabletop.scene(0, index, 48)
        name = tabletop.CLASSES[int(scene["label.txt"])]
        for field, member in (("photos", "rgb.jpg"), ("depth", "depth.png")):
            path = folder / "recordings" / field / name / f"{index:04d}.{member.split('.')[1]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(scene[member])


def commands(block: str) -> list[str]:
    joined = block.replace("\\\n", " ")
    return [line.split("  #")[0].strip() for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def main() -> int:
    pages = "".join((ROOT / page).read_text() for page in PAGES)
    environment = os.environ | {"PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        recordings(folder)
        for block in re.findall(r"```yaml\n# (\S+\.yaml)[^\n]*\n(.*?)```", pages, re.S):
            (folder / block[0]).write_text(block[1])
        for block in re.findall(r"```sh\n(.*?)```", pages, re.S):
            for line in commands(block):
                if line.startswith(("make ", "git ", "cd ", "pip ", "python -m benchmarks")) or GPU_ONLY in line:
                    print(f"not run here: {line}")
                    continue
                if " train " in line:
                    line += f" {STEPS}"
                print(f"$ {line}", flush=True)
                # A shell, because README lines may set variables in front of the command.
                done = subprocess.run(["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True)
                if done.returncode:
                    print(done.stdout[-2000:], done.stderr[-3000:], f"failed: {shlex.quote(line)}", sep="\n")
                    return 1
    print(f"every command of {', '.join(PAGES)} ran")
    return 0


if __name__ == "__main__":
    sys.exit(main())
