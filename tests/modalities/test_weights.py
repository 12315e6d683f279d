"""Weight files: every format gives the same weights, and nothing that does not match is ignored."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from modalities.encoders.weights import load_weights


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


@pytest.mark.parametrize("form", ["safetensors", "pt", "pth", "bin", "wrapped", "parallel"])
def test_every_format_gives_the_same_weights(tmp_path: Path, form: str) -> None:
    source, target = network(), network()
    source[1].running_mean += 1
    state = source.state_dict()
    path = tmp_path / f"weights.{form if form in ('safetensors', 'pth', 'bin') else 'pt'}"
    if form == "safetensors":
        save_file(state, path)
    elif form == "wrapped":
        torch.save({"state_dict": state, "epoch": 3}, path)
    else:
        torch.save({f"module.{k}": v for k, v in state.items()} if form == "parallel" else state, path)
    load_weights(target, path)
    torch.testing.assert_close(target.state_dict(), state, rtol=0, atol=0)


def test_what_does_not_match_is_named_and_changes_nothing(tmp_path: Path) -> None:
    target, state = network(), network().state_dict()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    del state["0.bias"]
    state["head.weight"] = torch.zeros(2)
    state["1.weight"] = torch.zeros(5)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ValueError) as caught:
        load_weights(target, tmp_path / "w.safetensors")
    for part in (
        "1 tensors missing (0.bias)",
        "1 tensors unexpected (head.weight)",
        "1.weight: [5] in the file, [4] in the network",
    ):
        assert part in str(caught.value)
    torch.testing.assert_close(target.state_dict(), before, rtol=0, atol=0)


def test_the_classifier_may_be_skipped_and_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = {**network().state_dict(), "fc.weight": torch.zeros(2)}
    save_file(state, tmp_path / "w.safetensors")
    with caplog.at_level(logging.INFO):
        load_weights(network(), tmp_path / "w.safetensors", skip=["fc."])
    assert "1 tensors are not used: fc.weight" in caplog.text


def test_other_files_are_refused_with_a_cure(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "module.pt")
    with pytest.raises(ValueError, match=r"pickled objects.*safetensors"):
        load_weights(network(), tmp_path / "module.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"not a dictionary of tensors.*safetensors"):
        load_weights(network(), tmp_path / "list.pt")
    (tmp_path / "w.h5").touch()
    with pytest.raises(ValueError, match=r"unknown format '.h5'"):
        load_weights(network(), tmp_path / "w.h5")
    with pytest.raises(ValueError, match="does not exist"):
        load_weights(network(), tmp_path / "none.pt")
    for name in ("broken.pt", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"no weights")
        with pytest.raises(ValueError, match=name):
            load_weights(network(), tmp_path / name)
