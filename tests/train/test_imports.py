"""What a run imports: seconds before its first step are paid at each start."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

UNUSED = ("transformers", "sklearn", "scipy", "matplotlib", "open3d", "torchaudio")


def test_training_imports_nothing_that_it_does_not_use(make_config: Callable[..., Path]) -> None:
    run = "import sys; from pipeline.cli.app import main; sys.argv[1:] = ['train', {path!r}, 'train.steps=1']\n"
    run += "try: main()\nfinally: print([name for name in {unused} if name in sys.modules])"
    code = run.format(path=str(make_config()), unused=UNUSED)
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert said.stdout.splitlines()[-1] == "[]", said.stderr
