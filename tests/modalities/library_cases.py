"""The cases of test_library_encoders.py, run in a process that has the libraries; see library_path.py."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.models._manipulate import adapt_input_conv
from torch import nn

from modalities import RGB, Depth, Geometry, Text
from modalities.encoders import Encoder
from modalities.encoders.library import adapt_input
from pipeline.export.onnx import Graph, difference, trace, write_onnx
from pipeline.models.network import build_network, load_network, save_network

PHOTOS = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
TOWERS = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
SENTENCES = ["a cat", "a photo of a very long dog and many other things that go past"]
VISION = [
    {"name": "timm", "model": "test_resnet"},
    {"name": "timm", "model": "test_vit", "size": 160},
    {"name": "torchvision", "model": "resnet18"},
    {"name": "torchvision", "model": "swin_t"},
    {"name": "torchvision", "model": "vit_b_32", "size": 224},
]


def images(spec: dict[str, Any], channels: int = 3) -> torch.Tensor:
    size = spec.get("size", 64)
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def clip(tmp_path: Path) -> str:
    """A local folder of open_clip with small towers."""
    folder = tmp_path / "clip"
    folder.mkdir()
    config = {"model_cfg": TOWERS, "preprocess_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return str(folder)


def captions() -> Any:
    text = Text(tokenizer="open_clip:ViT-B-32", length=12)
    return text, text.collate([text.augment([s], Geometry(), 0, None) for s in SENTENCES])


@pytest.mark.parametrize("spec", VISION, ids=lambda spec: f"{spec['name']}-{spec['model']}")
def test_features_are_the_librarys_own(spec: dict[str, Any]) -> None:
    encoder: Any = RGB().encoder({**spec, "weights": "random"}).eval()
    x = images(spec)
    with torch.no_grad():
        found = encoder(x)
        torch.testing.assert_close(found.pooled, encoder.network(encoder.normalise(x)), rtol=0, atol=1e-6)
    assert found.pooled.shape[1] == encoder.dim
    assert tuple(m.shape[1] if m.ndim == 4 else m.shape[2] for m in found.maps) == encoder.map_channels
    assert len(found.maps) >= 4


def test_stages_are_those_of_the_library() -> None:
    encoder: Any = RGB().encoder({"name": "torchvision", "model": "resnet18", "weights": "random"}).eval()
    assert encoder.channels_last  # the faster memory format, whatever the order of its maps
    x = images({})
    own, inner = encoder.normalise(x), encoder.network
    first = inner.relu(inner.bn1(inner.conv1(own)))
    maps = [first, inner.layer1(inner.maxpool(first))]
    for stage in (inner.layer2, inner.layer3, inner.layer4):
        maps.append(stage(maps[-1]))
    for found, wanted in zip(encoder(x).maps, maps, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_preprocessing_is_the_librarys_own(clip: str) -> None:
    own = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    found = RGB().encoder({"name": "torchvision", "model": "resnet18", "weights": "random"}).preprocessing
    assert (found.size, found.crop) == (own.crop_size[0], own.crop_size[0] / own.resize_size[0])
    assert [*found.mean, *found.std] == [*own.mean, *own.std]
    told = timm.data.resolve_data_config({}, model=timm.create_model("test_resnet"))
    found = RGB().encoder({"name": "timm", "model": "test_resnet", "weights": "random"}).preprocessing
    assert (found.size, found.crop, found.mean) == (told["input_size"][1], told["crop_pct"], told["mean"])
    found = RGB().encoder({"name": "open_clip", "model": clip, "weights": "random"}).preprocessing
    assert (found.size, found.mean, found.std, found.crop) == (32, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), 1.0)


def test_towers_of_open_clip_are_its_own(clip: str) -> None:
    vision: Any = RGB().encoder({"name": "open_clip", "model": clip, "weights": "random"}).eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(vision(x).pooled, vision.network(vision.normalise(x)), rtol=0, atol=1e-6)
    modality, batch = captions()
    text: Any = modality.encoder({"name": "open_clip", "model": clip, "weights": "random"}).eval()
    own = open_clip.get_tokenizer("ViT-B-32")(SENTENCES, context_length=12)
    torch.testing.assert_close(text(batch).pooled, text.network(own), rtol=0, atol=1e-6)
    short = {name: value[:1, :4] for name, value in batch.items()}  # a batch of short captions only
    torch.testing.assert_close(text(short).pooled, text.network(own[:1]), rtol=0, atol=1e-6)
    assert [m.shape[2] for m in text(batch).maps] == [32, 32]


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_other_channels_are_adapted_as_timm_does(channels: int) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3))
    wanted = adapt_input_conv(channels, network[0].weight.detach().clone())
    adapt_input(network, channels, "it")
    torch.testing.assert_close(network[0].weight.detach(), wanted)
    assert network(torch.rand(1, channels, 8, 8)).shape[1] == 8


@pytest.mark.parametrize("spec", VISION[:3], ids=lambda spec: f"{spec['name']}-{spec['model']}")
def test_a_depth_student_starts_from_the_weights_of_a_file(spec: dict[str, Any], tmp_path: Path) -> None:
    rgb: Any = RGB().encoder({**spec, "weights": "random"})
    path = tmp_path / "weights.safetensors"
    heads = {"fc.weight": torch.zeros(2, 2), "head.weight": torch.zeros(2, 2)}
    classifier = {"fc.weight": heads["fc.weight"]} if spec["model"] != "test_vit" else {"head.weight": torch.ones(1)}
    save_file({**rgb.network.state_dict(), **classifier}, path)
    depth: Any = Depth().encoder({**spec, "weights": str(path)}).eval()
    assert depth.preprocessing.mean == (0.0, 0.0)
    assert depth(images(spec, 2)).pooled.shape == (2, rgb.dim)
    same, found = rgb.network.state_dict(), depth.network.state_dict()
    changed = [name for name in same if same[name].shape != found[name].shape]
    assert len(changed) == 1
    assert all(torch.equal(same[name], found[name]) for name in same if name not in changed)


def test_a_local_folder_of_timm_is_read_and_a_mismatch_named(tmp_path: Path) -> None:
    network = timm.create_model("test_resnet", num_classes=5)
    timm.models.save_for_hf(network, tmp_path / "mine", safe_serialization=True)
    encoder: Any = RGB().encoder({"name": "timm", "model": str(tmp_path / "mine")}).eval()
    x = images({})
    wanted = network.eval().forward_head(network.forward_features(encoder.normalise(x)), pre_logits=True)
    torch.testing.assert_close(encoder(x).pooled, wanted, rtol=0, atol=1e-6)
    state = network.state_dict()
    state.pop(next(iter(state)))
    save_file(state, tmp_path / "mine" / "model.safetensors")
    with pytest.raises(ValueError, match="1 tensors missing"):
        RGB().encoder({"name": "timm", "model": str(tmp_path / "mine")})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "timm", "model": "resnet5"}, "no model 'resnet5', did you mean 'resnet50'"),
        ({"name": "timm", "model": "resnet50.a1_in1"}, "no weights .* did you mean 'resnet50.a1_in1k'"),
        ({"name": "torchvision", "model": "resnet19"}, "no classification model 'resnet19', did you mean 'resnet18'"),
        ({"name": "open_clip", "model": "ViT-B32", "weights": "random"}, "did you mean 'ViT-B-32'"),
        ({"name": "open_clip", "model": "ViT-B-32", "weights": "laion2b_s34b_b79"}, "did you mean 'laion2b_s34b_b79k'"),
    ],
)
def test_near_misses_are_suggested(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RGB().encoder(spec)


@pytest.mark.parametrize("kind", ["timm", "torchvision", "vision", "text"])
def test_exported_it_loads_again_and_equals_onnx(
    kind: str, clip: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec: dict[str, Any] = {
        "timm": {"name": "timm", "model": "test_resnet", "size": 64},
        "torchvision": {"name": "torchvision", "model": "resnet18", "size": 64},
    }.get(kind, {"name": "open_clip", "model": clip})
    modality: dict[str, Any] = {"name": "rgb"}
    batch: Any = PHOTOS if kind in ("timm", "torchvision") else PHOTOS[..., :32, :32].contiguous()
    if kind == "text":
        modality, batch = {"name": "text", "tokenizer": "open_clip:ViT-B-32", "length": 12}, captions()[1]
    with caplog.at_level(logging.INFO):
        network = build_network(modality, {**spec, "weights": "random"}, ["a", "b"], "student").eval()
    assert not caplog.records, "the libraries are silent"
    save_network(network, tmp_path / "student")
    loaded = load_network(tmp_path / "student").eval()
    torch.testing.assert_close(loaded(batch).logits, network(batch).logits, rtol=0, atol=0)
    graph = Graph(loaded, batch)
    write_onnx(trace(graph, batch), graph, tmp_path / "model.onnx")
    assert difference(graph, tmp_path / "model.onnx", [batch]) < 1e-4


def test_every_parameter_that_is_trained_has_a_gradient(clip: str) -> None:
    encoders: list[Encoder] = [RGB().encoder({**spec, "weights": "random"}) for spec in VISION[:4]]
    for encoder, spec in zip(encoders, VISION, strict=False):
        encoder(images(spec)).pooled.square().sum().backward()
        assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)
