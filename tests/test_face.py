"""`import wcord`: quick, without torch, and the same functions as inside."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import losses
import modalities
import pipeline
import wcord
from pipeline import config
from pipeline.common.errors import UserError
from pipeline.evaluate.evaluate_run import evaluate
from pipeline.train.loop import train

ROOT = Path(__file__).parents[1]
QUICK = 0.3
"""Seconds of a processor that `import wcord` may take."""


def test_importing_it_is_quick_and_brings_no_torch() -> None:
    code = (
        "import sys, time; begun = time.process_time(); import wcord; took = time.process_time() - begun; dir(wcord); "
        "print(took, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    took, torch = done.stdout.split()
    assert float(took) < QUICK
    assert torch == "False"


def test_it_hands_on_the_functions_themselves() -> None:
    assert wcord.train is train
    assert wcord.evaluate is evaluate
    assert wcord.load is pipeline.load
    assert wcord.config is config
    assert wcord.losses is losses
    assert wcord.modalities is modalities
    assert wcord.UserError is UserError
    assert wcord.__version__ == version("wcord")


def test_it_lists_its_names_and_no_others() -> None:
    assert {name for name in dir(wcord) if not name.startswith("_")} - {"TYPE_CHECKING"} == {
        *wcord.__all__,
    } - {"__version__"}
    for name in wcord.__all__:
        getattr(wcord, name)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        wcord.trian  # noqa: B018


@pytest.mark.parametrize("package", ["wcord", "pipeline", "losses", "modalities"])
def test_type_information_ships(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()
