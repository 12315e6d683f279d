"""A student is taken away whole: weights, description, preprocessing, and nothing that leads out of its folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from losses import Features
from modalities.transformers_loader import import_transformers
from pipeline.common.errors import UserError
from pipeline.models.network import Network, build_network, digest, load_network, save_network, sight

SPECS = [
    ({"name": "rgb"}, {"name": "resnet", "depth": 8, "width": 4, "size": 16}),
    ({"name": "depth", "input": "depth+normals"}, {"name": "cnn5", "width": 4, "size": 16}),
]


def build(number: int = 0, classes: list[str] | None = None) -> Network:
    torch.manual_seed(number)
    return build_network(*SPECS[number], classes, "student")


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("classes", [None, ["a", "b"]])
def test_round_trip(tmp_path: Path, number: int, classes: list[str] | None) -> None:
    network = build(number, classes).eval()
    save_network(network, tmp_path)
    loaded = load_network(tmp_path).eval()
    x = torch.rand(2, network.encoder.mean.shape[1], 16, 16)
    one, two = network(x), loaded(x)
    assert torch.equal(one.pooled, two.pooled)
    assert loaded.classes == classes
    assert (one.logits is None and two.logits is None) or torch.equal(one.logits, two.logits)
    assert loaded.dims == network.dims
    assert loaded.view == network.view
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors", "network.json"]


def test_maps_of_a_series_without_a_height_are_refused() -> None:
    network = build(1)
    network.encoder.forward = lambda x: Features(x.mean((2, 3)), [x.mean(2)])  # type: ignore[method-assign]
    network.encoder.map_channels = (4,)
    with pytest.raises(UserError, match=r"encoder cnn5: its maps are \[2, 4, 9\], with \[9\] .*\[B, C, 1, L\]"):
        network(torch.rand(2, 4, 16, 9))
    network.encoder.forward = lambda x: Features(x.mean((2, 3)), [x.mean(2)[:, :, None]])  # type: ignore[method-assign]
    assert network(torch.rand(2, 4, 16, 9)).maps[0].shape == (2, 4, 1, 9)
    network.encoder.map_channels = ()  # maps that nobody asks for
    network(torch.rand(2, 4, 16, 9))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_network(build(classes=["a", "b"]), tmp_path)
    description = json.loads((tmp_path / "network.json").read_text())
    description["encoder"]["width"] = 8
    (tmp_path / "network.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=r"model.safetensors: does not match network.json"):
        load_network(tmp_path)


@pytest.mark.parametrize("setting", [{"std": [0.2, 0.2, 0.2]}, {"mean": [0.5, 0.5, 0.5]}, {"size": 32}])
def test_what_a_network_sees_is_told_apart_from_its_weights(setting: dict[str, object]) -> None:
    encoder = {"name": "cnn5", "width": 4, "size": 16}
    torch.manual_seed(0)
    one = build_network({"name": "rgb"}, encoder, None, "student")
    torch.manual_seed(0)
    other = build_network({"name": "rgb"}, encoder | setting, None, "student")
    assert digest(one) == digest(other)
    assert sight(one) != sight(other)


def test_a_network_that_lies_elsewhere_sees_the_same_and_one_that_pools_otherwise_does_not(tmp_path: Path) -> None:
    transformers = import_transformers()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=300))
    for name in ("here", "there"):
        bert.save_pretrained(tmp_path / name)

    def read(name: str, pooling: str) -> Network:
        encoder = {"name": "transformers", "model": str(tmp_path / name), "pooling": pooling}
        return build_network({"name": "text"}, encoder, None, "teacher")  # type: ignore[return-value]

    first, moved, other = read("here", "mean"), read("there", "mean"), read("here", "cls")
    assert digest(first) == digest(moved) == digest(other)
    assert sight(first) == sight(moved) != sight(other)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"modality": 3, "encoder": {}, "classes": null}'])
def test_a_damaged_description_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "network.json").write_text(content)
    with pytest.raises(UserError, match=r"network.json: "):
        load_network(tmp_path)


def test_a_description_does_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    spec = {"modality": {"name": "rgb"}, "encoder": {"name": "transformers", "model": "./../../etc"}, "classes": None}
    (tmp_path / "network.json").write_text(json.dumps(spec))
    with pytest.raises(UserError, match=r"is outside the folder"):
        load_network(tmp_path)


def test_what_cannot_be_built_names_its_place_in_the_config() -> None:
    with pytest.raises(UserError, match=r"^student: .*depth"):
        build_network({"name": "rgb"}, {"name": "resnet", "depth": 9}, None, "student")


def test_a_damaged_file_of_weights_is_named(tmp_path: Path) -> None:
    save_network(build(), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"half of a file")
    with pytest.raises(UserError, match=r"model.safetensors"):
        load_network(tmp_path)
