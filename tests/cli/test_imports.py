"""What a command imports: seconds before its first step are paid at each start."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

UNUSED = (
    *("transformers", "tokenizers", "huggingface_hub", "timm", "torchvision", "open_clip", "peft"),
    *("sklearn", "scipy", "matplotlib", "pandas", "pyarrow", "h5py", "PIL", "rich", "starlette", "uvicorn"),
    *("torch._dynamo", "torch.distributed.tensor", "sympy"),
    *("open3d", "torchaudio", "soundfile", "onnx", "onnxruntime", "onnxscript", "faiss", "fsspec", "aiohttp"),
    *("pipeline.packing", "pipeline.report", "pipeline.export", "pipeline.inference", "pipeline.bench"),
)
"""Libraries and wings that the first step of a depth student with an RGB teacher does not use."""

LIGHT = ("torch", "numpy", "cv2", "omegaconf", "yaml", "rich")
"""Libraries that help texts do not use."""

HEAVY = ("torch", "numpy", "cv2", "losses", "modalities")
"""What checking and explaining a config does not import."""

REPORT = """
import sys
from pipeline.cli.app import main
sys.argv[1:] = {arguments!r}
try:
    main()
finally:
    print([name for name in {names!r} if name in sys.modules], file=sys.stderr)
"""


def loaded(arguments: Sequence[str], names: Sequence[str], code: int = 0) -> str:
    """Run a command in a new process, and list which of the modules it has imported."""
    run = [sys.executable, "-c", REPORT.format(arguments=list(arguments), names=names)]
    found = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(run, cwd=ROOT, env=found, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    return done.stderr.splitlines()[-1]


def test_training_imports_nothing_that_it_does_not_use(make_config: Callable[..., Path], runs: Path) -> None:
    path = make_config(teacher=f"teacher: {{run: {runs / 'teacher'}}}", losses="  cross_entropy: {}\n  wcord: {dim: 8}")
    quiet = ["train.steps=1", "train.warmup=0", "train.trackers=[]"]  # TensorBoard, the usual tracker, imports fsspec
    assert loaded(["train", str(path), *quiet], UNUSED) == "[]"


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["config", "--help"]], ids=" ".join)
def test_help_imports_no_library(arguments: list[str]) -> None:
    assert loaded(arguments, LIGHT) == "[]"


def test_listing_configs_imports_no_settings() -> None:
    assert loaded(["config", "list"], [*LIGHT, "pipeline.config.settings"]) == "[]"


@pytest.mark.parametrize("command", ["list", "show rgb_to_depth", "explain losses.wcord", "schema", "reference"])
def test_config_commands_import_no_torch(command: str) -> None:
    assert loaded(["config", *command.split()], HEAVY) == "[]"


@pytest.mark.parametrize("command", ["train", "cache"])
def test_a_missing_dataset_is_reported_without_torch(command: str, tmp_path: Path) -> None:
    arguments = [command, "rgb_teacher", f"data.shards={tmp_path / 'my data'}"]
    assert loaded(arguments, HEAVY, code=2) == "[]"
