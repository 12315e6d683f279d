"""Encoders of timm, torchvision and open_clip, run where they are installed; and what is said where they are not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modalities import RGB
from modalities.tokenizer import tokenizer

HERE = Path(__file__).parent
LIBRARIES = Path(sys.prefix) / "libraries"
INSTALLED = all((LIBRARIES / name).is_dir() for name in ("timm", "torchvision", "open_clip"))


@pytest.mark.parametrize("name", ["timm", "torchvision", "open_clip"])
def test_a_missing_library_is_named_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (name, f"{name}.models"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"pip install 'wcord\[{name}\]'"):
        RGB().encoder({"name": name, "model": "resnet18", "weights": "random"})


def test_the_tokenizer_names_the_extra_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ValueError, match=r"pip install 'wcord\[open_clip\]'"):
        tokenizer("open_clip:ViT-B-32")


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason=f"timm, torchvision and open_clip are not in {LIBRARIES}; run `make setup`")
@pytest.mark.parametrize("cases", ["library_cases.py", "library_training.py"])
def test_with_the_libraries(cases: str) -> None:
    paths = [str(HERE.parents[1]), str(HERE), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "library_path", "-p", "no:xdist", "-m", "", str(HERE / cases)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-5000:]
