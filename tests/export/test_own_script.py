"""The script of an outside modality is in the export only if it does what the modality does."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from modalities import Encoder, Features, Modality
from modalities.encoders import Preprocessing
from pipeline.common.errors import UserError
from pipeline.data.source import Source, open_split
from pipeline.data.views import View
from pipeline.export.bundle import PREPROCESS, SCRIPTS, Export, _check_own_script, _write_preprocessing
from pipeline.export.own_script import script_fault
from pipeline.models.network import Network

GOOD = """
import json
from pathlib import Path
import numpy as np

def read(data):
    size = json.loads((Path(__file__).parent / "preprocessing.json").read_text())["size"]
    return {"head": np.frombuffer(data[:size], np.uint8).astype(np.float32)}

def batch(samples):
    return {"head": np.stack([sample["head"] for sample in samples])}
"""


class Mean(Encoder):
    reads_pictures = False

    def __init__(self) -> None:
        super().__init__(Preprocessing.of(1, 24))
        self.dim = 1

    def forward(self, x: torch.Tensor) -> Features:
        return Features(x.mean(1, keepdim=True))


@dataclass(frozen=True, kw_only=True)
class Head(Modality):
    """The first bytes of a depth map, as numbers."""

    name: ClassVar[str] = "head"
    fields: ClassVar[tuple[str, ...]] = ("depth.png",)
    script: str = ""
    other: Any = None

    def decode(self, data: bytes, meta: Any) -> np.ndarray:
        return np.frombuffer(data, np.uint8).astype(np.float32)

    def augment(self, value: np.ndarray, geometry: Any, size: int, rng: Any) -> torch.Tensor:
        return torch.from_numpy(value[:size].copy())

    def encoder(self, spec: Any) -> Encoder:
        return Mean()

    def picture(self, value: np.ndarray) -> np.ndarray:
        return np.zeros((1, 1, 3), np.uint8)

    @property
    def preprocess_script(self) -> Path | None:
        return Path(self.script) if self.script else None


@pytest.fixture
def source(shapes: Path) -> Source:
    return open_split(shapes, "test", "label")


def exported(tmp_path: Path, code: str, **settings: Any) -> tuple[Network, Export]:
    (tmp_path / "own.py").write_text(code)
    adapter = Head(script=str(tmp_path / "own.py"), **settings)
    spec = {"modality": {"name": "head"}, "encoder": {"name": "mean"}, "classes": ["a", "b"], "dense": False}
    network, done = Network(adapter, Mean(), spec), Export(tmp_path / "out")
    done.folder.mkdir()
    _write_preprocessing(network, done)
    return network, done


def test_a_script_that_agrees_is_copied_with_those_that_call_it(tmp_path: Path, source: Source) -> None:
    network, done = exported(tmp_path, GOOD)
    _check_own_script(network, source, done)
    assert done.notes == []
    assert {path.name for path in done.folder.iterdir()} == {PREPROCESS, "preprocessing.json", *SCRIPTS}
    assert (done.folder / PREPROCESS).read_text() == GOOD


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("data[:size]", "data[1:size + 1]", "returns a head that differs from the modality's by"),
        ("np.float32)}", "np.float32) + 1e-5}", None),
        ("np.float32)", "np.float64)", r"returns head as float64 \[8, 24\], the modality as float32 \[8, 24\]"),
        ("data[:size]", "data[:9]", r"returns head as float32 \[8, 9\], the modality as float32 \[8, 24\]"),
        ('{"head": np.stack', '{"tail": np.stack', "returns tail, the modality head"),
        ("def batch", "def together", "has no function batch"),
        ("import json", "import json, nowhere", "raised ModuleNotFoundError: No module named 'nowhere'"),
        ("import json", "import json, pipeline.data", "imports pipeline, which is not in the exported folder"),
        ("import json", "import json\nfrom modalities import get", "imports modalities, which is not"),
        ("import json", f"import json\nimport {__name__}", f"imports {__name__.partition('.')[0]}, which is not"),
        ("import json", "import json\nfrom . import own", "raised ImportError"),
        ("def read", "def read(:", "raised SyntaxError"),
        ("    return {", "    raise ValueError('too short')\n    return {", "raised ValueError: too short"),
    ],
)
def test_one_that_does_not_is_left_out_and_the_note_says_why(
    old: str, new: str, fault: str | None, tmp_path: Path, source: Source
) -> None:
    network, done = exported(tmp_path, GOOD.replace(old, new, 1))
    _check_own_script(network, source, done)
    if fault is None:
        assert done.notes == []
        return
    assert [path.name for path in done.folder.iterdir()] == ["preprocessing.json"]
    assert re.match("preprocess.py is missing: the script own.py of the modality head " + fault, done.notes[0])
    assert str(tmp_path) not in done.notes[0]


def test_a_modality_that_needs_its_meta_json_is_not_compared(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(self: Head, data: bytes, meta: Any) -> np.ndarray:
        raise ValueError("meta.json: no rate")

    monkeypatch.setattr(Head, "decode", decode)
    fault = script_fault(tmp_path / "none.py", View(Head(), 24), source)
    assert fault == "cannot be compared, since no sample can be decoded without its meta.json"


def test_without_a_script_the_card_says_so(tmp_path: Path, source: Source) -> None:
    network, done = exported(tmp_path, GOOD)
    network.modality = Head()
    done.notes, done.folder = [], tmp_path / "second"
    done.folder.mkdir()
    _write_preprocessing(network, done)
    _check_own_script(network, source, done)
    assert done.notes == ["preprocess.py is missing: the preprocessing of head requires the wcord package."]


def test_settings_that_are_no_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"modality head: Object of type SimpleNamespace .* store only numbers"):
        exported(tmp_path, GOOD, other=SimpleNamespace())
