"""Intervals: steps, or epochs as text."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.config.interval import in_steps
from pipeline.config.reference import explain_key


@pytest.mark.parametrize(
    ("interval", "steps"), [(7, 7), (0, 0), ("1 epoch", 10), ("2 epochs", 20), ("0.25 epochs", 2), ("0.001 epochs", 1)]
)
def test_epochs_are_converted_to_steps(interval: int | str, steps: int) -> None:
    assert in_steps(interval, 10) == steps


@pytest.mark.parametrize("written", ["3", "1 epoch", "0.5 epochs"])
def test_both_forms_are_read_and_written_back(written: str, tmp_path: Path) -> None:
    config = configs.load("rgb_to_depth", [f"train.checkpoint_every={written}", f"evaluation.every={written}"])
    assert str(config.train.checkpoint_every) == str(config.evaluation.every) == written
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert configs.load(tmp_path / "again.yaml") == config


@pytest.mark.parametrize("written", ["-1", "1.5", "true", "null", "0 epochs", "2 weeks", "epochs", "[1]"])
def test_others_are_refused(written: str) -> None:
    expected = "must be a number of steps above 0, or of epochs such as `2 epochs`, got"
    with pytest.raises(UserError) as error:
        configs.load("rgb_to_depth", [f"train.checkpoint_every={written}", f"evaluation.every={written}"])
    assert f"train.checkpoint_every: {expected}" in str(error.value)
    assert f"evaluation.every: must be 0 or {expected}" in str(error.value)


def test_the_reference_names_both_forms() -> None:
    assert "int > 0, or string such as `2 epochs`; 500 by default" in explain_key("train.checkpoint_every")
