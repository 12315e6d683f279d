"""The schema says what the loader says, and the reference page is made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from losses import LOSSES
from modalities import MODALITIES
from pipeline.common.errors import UserError
from pipeline.config.json_schema import schema
from pipeline.config.reference import explain_key, page
from pipeline.config.settings import SECTIONS, shipped
from pipeline.config.shipped import SHIPPED

PAGE = Path(__file__).parents[2] / "docs" / "config-reference.md"


@pytest.fixture(scope="module")
def validator() -> Any:
    kind = jsonschema.Draft202012Validator
    kind.check_schema(schema())
    return kind(schema())


@pytest.fixture
def written() -> dict[str, Any]:
    return yaml.safe_load((SHIPPED / "rgb_to_depth.yaml").read_text())


@pytest.mark.parametrize("name", shipped())
def test_shipped_configs_fit(name: str, validator: Any) -> None:
    assert [
        error.message for error in validator.iter_errors(yaml.safe_load((SHIPPED / f"{name}.yaml").read_text()))
    ] == []


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("train", {"clip": -1}),
        ("train", {"stepz": 3}),
        ("losses", {"wcord": {"anchor": 2}}),
        ("losses", {"wcordd": {}}),
        ("student", {"modality": {"name": "depth", "input": "colour"}}),
        ("student", {"modality": "dept"}),
        ("student", {"encoder": {"name": "cnn5", "widht": 3}}),
        ("student", {"encoder": {"width": 3}}),
        ("teacher", {"views": 0}),
    ],
)
def test_faults_do_not(section: str, change: dict[str, Any], validator: Any, written: dict[str, Any]) -> None:
    written[section] |= change
    assert list(validator.iter_errors(written))


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("losses", {"kd": None, "mine.losses:Mine": {"anything": 1}}),
        ("student", {"modality": ["rgb", {"name": "depth"}], "encoder": ["resnet", "mine:Net"]}),
        ("teacher", {"run": ["a", "b"]}),
    ],
)
def test_every_way_of_writing_fits(
    section: str, change: dict[str, Any], validator: Any, written: dict[str, Any]
) -> None:
    written[section] |= change
    assert [error.message for error in validator.iter_errors(written)] == []


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run: wcord config reference > docs/config-reference.md"


def test_a_key_is_explained_with_type_range_default_and_meaning() -> None:
    assert explain_key("train.clip") == (
        "train.clip: number > 0, or null; 5.0 by default.\nMaximum gradient norm; null disables clipping."
    )
    assert explain_key("student.modality.centre").startswith("modality.depth.centre: bool; false by default.")
    both = explain_key("encoder.width")
    assert "encoder.cnn5.width: " in both
    assert "encoder.resnet.width: " in both
    assert explain_key("losses.wcord.anchor").startswith("losses.wcord.anchor: number ≥ 0 and ≤ 1; 0.2 by default.")
    assert "required" in explain_key("data.shards")
    assert "None" not in explain_key("encoder.module")
    assert "\n\nWith modality `audio`: Any module for audio." in explain_key("encoder.module")
    assert "With modality" not in explain_key("encoder.cnn5")
    assert explain_key("student.modality.depth.near") == explain_key("modality.depth.near")


@pytest.mark.parametrize("key", [*(f"losses.{name}" for name in LOSSES), *(f"modality.{name}" for name in MODALITIES)])
def test_every_component_is_explained(key: str) -> None:
    assert len(explain_key(key).splitlines()) >= 3


@pytest.mark.parametrize("key", [".".join(map(str, key)) for key in SECTIONS if key])
def test_every_section_is_explained(key: str) -> None:
    assert len(explain_key(key).splitlines()) >= 3


def test_an_unknown_key_names_a_near_one() -> None:
    with pytest.raises(UserError, match=r"Did you mean train\.clip\?"):
        explain_key("train.clipp")


def test_the_schema_is_json() -> None:
    assert json.loads(json.dumps(schema())) == schema()
