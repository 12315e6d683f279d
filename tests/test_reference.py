"""The reference page names everything that a config can: modalities, encoders, losses and their keywords."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from losses import LOSSES
from modalities import MODALITIES
from pipeline.config.settings import ZeroShot

PAGE = (Path(__file__).parents[1] / "docs" / "modalities-and-losses.md").read_text()
ENCODERS = {name: encoder for kind in MODALITIES.values() for name, encoder in kind.encoders.items()}


@pytest.mark.parametrize(("name", "kind"), [*MODALITIES.items(), *ENCODERS.items(), *LOSSES.items()])
def test_every_name_and_keyword_is_on_the_page(name: str, kind: type) -> None:
    keywords = [p.name for p in inspect.signature(kind).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert [word for word in (name, *keywords) if f"`{word}`" not in PAGE and f"`{word}:" not in PAGE] == []


def test_zero_shot_too() -> None:
    assert all(word in PAGE for word in ("zero_shot:", *ZeroShot.model_fields))
