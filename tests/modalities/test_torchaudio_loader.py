"""torchaudio comes up beside any build of torch, and what is missing is named with the extra to install."""

from __future__ import annotations

import subprocess
import sys

import pytest

from modalities import torchaudio_loader


def test_transforms_work_and_transformers_finds_it() -> None:
    code = """
from modalities.torchaudio_loader import import_torchaudio
torchaudio = import_torchaudio()
import torch, transformers
assert torchaudio.transforms.Resample(8000, 16000)(torch.zeros(80)).shape == (160,)
transformers.ASTFeatureExtractor()(torch.zeros(16000).numpy(), sampling_rate=16000)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("package", ["torchaudio", "soundfile"])
def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"audio requires {package}: pip install torchaudio soundfile"):
        getattr(torchaudio_loader, f"import_{package}")()
