"""A student that starts from the encoder of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.models.build import build_model
from pipeline.models.initial_weights import initialise
from pipeline.models.network import Network, build_network, save_network

RESNET: dict[str, Any] = {"name": "resnet", "depth": 8, "width": 4, "size": 16}
DEPTH = {"name": "depth"}


def network(modality: dict[str, Any], encoder: dict[str, Any] = RESNET) -> Network:
    found = build_network(modality, encoder, ["a", "b"], "student")
    assert isinstance(found, Network)
    return found.eval()


def run_of(found: Network, folder: Path) -> str:
    save_network(found, folder / "student")
    return str(folder)


def test_the_same_modality_gives_the_same_features(tmp_path: Path) -> None:
    source, student, x = network({"name": "rgb"}), network({"name": "rgb"}), torch.rand(4, 3, 16, 16)
    head = student.head.weight.clone()  # type: ignore[union-attr]
    initialise(student, run_of(source, tmp_path))
    torch.testing.assert_close(student(x).pooled, source(x).pooled, rtol=0, atol=0)
    assert torch.equal(student.head.weight, head)  # type: ignore[union-attr]


def test_other_channels_are_folded_and_keep_their_normalisation(tmp_path: Path) -> None:
    source, student = network({"name": "rgb"}), network(DEPTH)
    mean = student.encoder.mean.clone()
    initialise(student, run_of(source, tmp_path))
    own, given = student.encoder.state_dict(), source.encoder.state_dict()
    changed = [name for name in given if name not in ("mean", "std") and not torch.equal(own[name], given[name])]
    assert len(changed) == 1
    expected = given[changed[0]][:, :2] * (3 / 2)
    torch.testing.assert_close(own[changed[0]], expected, rtol=0, atol=0)
    assert torch.equal(student.encoder.mean, mean)


@pytest.mark.parametrize("other", [{"width": 6}, {"depth": 14}, {"name": "cnn5"}])
def test_another_architecture_is_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    encoder = {k: v for k, v in (RESNET | other).items() if k != "depth" or "name" not in other}
    student = network(DEPTH, encoder)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(UserError, match=r"student\.init_from.* does not match that of the student.*the same encoder"):
        initialise(student, run_of(network({"name": "rgb"}), tmp_path))
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_a_config_names_the_run(tmp_path: Path, make_config: Callable[..., Path]) -> None:
    path = make_config()
    encoder = {**configs.load(path).student.encoder}
    source = network({"name": "rgb"}, encoder)
    config = configs.load(path, [f"student.init_from={run_of(source, tmp_path / 'teacher')}"])
    student = build_model(config).student
    bias = [name for name in source.encoder.state_dict() if name.endswith("bias")][-1]
    assert torch.equal(student.encoder.state_dict()[bias], source.encoder.state_dict()[bias])
    with pytest.raises(UserError, match=r"is the same folder as student\.init_from"):
        configs.load(path, [f"student.init_from={config.run}"])
