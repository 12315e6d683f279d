"""Any module as an encoder: its own features, gradient caching, export, and what is wrong is named."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import wcord
from losses.registry import import_object
from modalities import RGB, Audio, Depth, Text
from modalities.encoders.wrapped import tensor_of
from pipeline.export.onnx import Graph, difference, trace, write_onnx
from pipeline.models.gradient_cache import in_parts
from pipeline.models.network import build_network, load_network, save_network


class Trunk(nn.Module):
    def __init__(self, channels: int = 3, width: int = 6) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(channels, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(4, width, 3, 2, 1), nn.ReLU())


class Tuples(Trunk):
    """Returns a tuple and has a classifier that the features do not need; `view` rejects channels-last."""

    def __init__(self, **keywords: int) -> None:
        super().__init__(**keywords)
        self.fc = nn.Linear(6 * 16, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.layer2(self.layer1(x))
        x = x.view(x.size(0), -1)
        return x, self.fc(x)


class Dicts(Trunk):
    """Returns a dictionary."""

    def __init__(self, **keywords: int) -> None:
        super().__init__(**keywords)
        self.avgpool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> dict[str, Tensor | None]:
        x = self.layer2(self.layer1(x))
        return {"pooler_output": None, "other": x, "features": self.avgpool(x).flatten(1)}


class Unpooled(Trunk):
    """Returns a map."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layer2(self.layer1(x))


class Tokens(nn.Module):
    """Token ids to tokens."""

    def __init__(self, vocabulary: int = 300) -> None:
        super().__init__()
        self.embed, self.linear = nn.Embedding(vocabulary, 8), nn.Linear(8, 7)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.linear(self.embed(input_ids))


class Waves(nn.Module):
    """A 1-D convolution of a waveform."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 5, 9, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x[:, None]).relu()


FOREIGN = {"Tuples": lambda out: out[0], "Dicts": lambda out: out["features"], "Unpooled": lambda out: out.mean((2, 3))}
HERE = __name__


def spec(name: str, **more: Any) -> dict[str, Any]:
    return {"name": "module", "factory": f"{HERE}:{name}", "layers": ["layer1", "layer2"], "size": 16, **more}


@pytest.mark.parametrize("name", FOREIGN)
def test_features_are_those_of_the_module(name: str) -> None:
    network = build_network({"name": "rgb"}, spec(name), None, "student").eval()
    assert network.dims.maps == (4, 6)
    assert network.map_sizes() == ((8, 8), (4, 4))
    x = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    encoder: Any = network.encoder
    own = copy.deepcopy(encoder.network)
    for layer in own.modules():
        layer._forward_hooks.clear()
    normalised = encoder.normalise(x)
    features = network(x)
    torch.testing.assert_close(features.pooled, FOREIGN[name](own(normalised)), atol=1e-6, rtol=0)
    torch.testing.assert_close(features.maps[0], own.layer1(normalised), atol=1e-6, rtol=0)
    torch.testing.assert_close(features.maps[1], own.layer2(own.layer1(normalised)), atol=1e-6, rtol=0)
    assert features.pooled.shape[1] == network.dims.pooled


@pytest.mark.parametrize("name", FOREIGN)
def test_it_exports_to_onnx(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    network = build_network({"name": "rgb"}, spec(name), ["a", "b"], "student")
    batches = [torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8) for n in (4, 7)]
    graph = Graph(network, batches[0])
    write_onnx(trace(graph, batches[0]), graph, tmp_path / "model.onnx")
    assert difference(graph, tmp_path / "model.onnx", batches) < 1e-4


def test_gradient_caching_gives_the_same_gradient() -> None:
    encoder = build_network({"name": "rgb"}, spec("Unpooled"), None, "student")
    encoder.encoder.network.layer1[1].eval()  # the statistics of a part differ from those of the batch
    encoder.train = lambda mode=True: encoder  # type: ignore[method-assign]
    x = torch.rand(10, 3, 16, 16)
    gradients = []
    for features in (encoder(x), in_parts(encoder, x, 4)):
        encoder.zero_grad()
        (features.pooled.square().sum() + features.maps[0].square().sum()).backward()
        gradients.append([p.grad.clone() for p in encoder.parameters()])
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, parts, atol=1e-4, rtol=1e-4)


def test_unused_parameters_are_frozen_and_no_activation_is_kept() -> None:
    encoder: Any = wcord.wrap(Tuples(), layers=["layer1"], size=16)
    assert {name for name, p in encoder.named_parameters() if not p.requires_grad} == {
        "network.fc.weight",
        "network.fc.bias",
    }
    encoder(torch.rand(2, 3, 16, 16))
    assert not encoder.taken
    frozen: Any = wcord.wrap(Unpooled().requires_grad_(False), size=16)
    assert not any(p.requires_grad for p in frozen.parameters())


def test_a_copy_has_its_own_hooks() -> None:
    encoder: Any = wcord.wrap(Unpooled(), layers=["layer1"], size=16)
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        other.network.layer1[0].weight.mul_(2)
    x = torch.rand(2, 3, 16, 16)
    assert not torch.equal(other(x).maps[0], encoder(x).maps[0])
    assert not encoder.taken


def test_layouts_and_tokens() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Conv2d(3, 5, 3, 2)
            self.last, self.tokens = nn.Identity(), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            x = self.last(self.map(x).permute(0, 2, 3, 1))
            return self.tokens(x.flatten(1, 2))

    x = torch.rand(2, 3, 16, 16)
    mean = wcord.wrap(Odd(), layers=["last"], pooled="tokens", layout="last", size=16)
    assert mean.dim == 5
    assert mean(x).maps[0].shape == (2, 5, 7, 7)
    torch.testing.assert_close(mean(x).pooled, mean(x).maps[0].mean((2, 3)))
    first = wcord.wrap(mean.network, pooling="first", size=16)  # type: ignore[arg-type]
    torch.testing.assert_close(first(x).pooled, mean(x).maps[0][:, :, 0, 0])


def test_text_ignores_padding_and_audio_has_channels_first() -> None:
    text = Text(length=16)
    encoder = text.encoder({"name": "module", "factory": f"{HERE}:Tokens", "length": 16}).eval()
    ids = [torch.arange(4), torch.arange(9)]
    torch.testing.assert_close(encoder(text.collate(ids)).pooled[:1], encoder(text.collate(ids[:1])).pooled)
    audio = Audio(rate=1000)
    one = audio.encoder({"name": "module", "factory": f"{HERE}:Waves", "layers": ["conv"], "layout": "first"})
    features = one(audio.collate([torch.rand(1000), torch.rand(1000)]))
    assert (one.dim, one.map_channels, features.maps[0].shape[2]) == (5, (5,), 5)


def test_a_time_series_is_an_example() -> None:
    encoder = wcord.wrap(nn.Conv1d(8, 6, 5), layout="first", example=torch.zeros(2, 8, 50))
    assert encoder.dim == 6
    assert encoder(torch.rand(3, 8, 70)).pooled.shape == (3, 6)
    assert encoder.map_sizes() == ()


def test_weights_are_loaded_and_a_saved_network_needs_neither_them_nor_a_hub(tmp_path: Path) -> None:
    trained = Dicts(channels=2)
    save_file(trained.state_dict(), tmp_path / "own.safetensors")
    own = spec("Dicts", keywords={"channels": 2}, weights=str(tmp_path / "own.safetensors"))
    network = build_network({"name": "depth"}, own, None, "teacher").eval()
    torch.testing.assert_close(network.encoder.network.layer1[0].weight, trained.layer1[0].weight)
    save_network(network, tmp_path / "saved")
    (tmp_path / "own.safetensors").unlink()
    x = torch.rand(3, 2, 16, 16)
    torch.testing.assert_close(load_network(tmp_path / "saved").eval()(x).pooled, network(x).pooled)


def test_a_function_may_say_where_the_weights_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = Unpooled()
    torch.save(trained.state_dict(), tmp_path / "own.pth")
    monkeypatch.setattr(Unpooled, "path", staticmethod(lambda: tmp_path / "own.pth"), raising=False)
    encoder: Any = RGB().encoder(spec("Unpooled", weights=f"{HERE}:Unpooled.path"))
    torch.testing.assert_close(encoder.network.layer1[0].weight, trained.layer1[0].weight)
    assert import_object(f"{HERE}:Unpooled.path")() == tmp_path / "own.pth"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": ["layerr2"]}, r"Unpooled has no layer 'layerr2'; did you mean layer2"),
        ({"pooled": "xyz"}, r"no layer 'xyz'; its children are: layer1, layer2"),
        ({"factory": "Unpooled"}, "factory: 'Unpooled' is not package.module:function"),
        ({"factory": f"{HERE}:Unpoold"}, "has no 'Unpoold'"),
        ({"factory": f"{HERE}:spec", "keywords": {"name": "x"}}, "returned dict, not a torch.nn.Module"),
        ({"keywords": {"depth": 3}}, "cannot be called with keywords {'depth': 3}"),
        ({"keywords": {"channels": 1}}, "Unpooled does not run on an example: .*channels"),
        ({"weights": "nowhere.safetensors"}, "nowhere.safetensors does not exist"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RGB().encoder(spec("Unpooled") | change)


def test_outputs_without_an_obvious_tensor_are_named() -> None:
    both = {"a": torch.zeros(1), "b": torch.zeros(1)}
    assert tensor_of({"a": torch.zeros(1), "b": None}, "x") is not None
    for value, message in ((both, r"tensors \['a', 'b'\]"), (3, "int without a tensor"), ((), "tuple without")):
        with pytest.raises(ValueError, match=message):
            tensor_of(value, "layer1")
    idle = Unpooled()
    idle.idle = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="not called by the module's forward"):
        wcord.wrap(idle, layers=["idle"], size=16)
    with pytest.raises(ValueError, match="a map has 3 or 4 dimensions"):
        wcord.wrap(Tuples(), layers=["fc"], size=16)


def test_random_weights_can_be_said_of_every_encoder() -> None:
    assert RGB().encoder({"name": "resnet8", "weights": "random"}).dim == 64
    assert Depth().encoder({"name": "cnn5", "weights": "random", "width": 4, "size": 16}).dim == 16
    with pytest.raises(ValueError, match="unknown setting 'weights'; there are"):
        RGB().encoder({"name": "resnet8", "weights": "mine.pth"})


@pytest.mark.slow
def test_it_compiles() -> None:
    encoder: Any = wcord.wrap(Unpooled(), layers=["layer1"], size=16).eval()
    x = torch.rand(4, 3, 16, 16)
    wanted = encoder(x)
    encoder.compile()
    for _ in range(2):
        found = encoder(x)
        torch.testing.assert_close(found.pooled, wanted.pooled, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.maps[0], wanted.maps[0], atol=1e-5, rtol=1e-4)
