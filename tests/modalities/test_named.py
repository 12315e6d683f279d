"""The networks of the field's tables: as large, as costly and of the same shapes as published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from modalities import RGB
from modalities.encoders.named import CIFAR, IMAGENET
from modalities.encoders.wide_resnet import WideResNet

RESNET = ((16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8))
RESNET_X4 = ((32, 32, 32), (64, 32, 32), (128, 16, 16), (256, 8, 8))
RESNET_50 = ((64, 32, 32), (256, 32, 32), (512, 16, 16), (1024, 8, 8), (2048, 4, 4))
WRN_2 = ((16, 32, 32), (32, 32, 32), (64, 16, 16), (128, 8, 8))
VGG = ((64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4))
MOBILE = ((16, 16, 16), (12, 16, 16), (16, 8, 8), (48, 4, 4), (160, 2, 2))
SHUFFLE_1 = ((24, 32, 32), (240, 16, 16), (480, 8, 8), (960, 4, 4))
SHUFFLE_2 = ((24, 32, 32), (116, 16, 16), (232, 8, 8), (464, 4, 4))

# Of the code that the tables were made with (github.com/HobbitLong/RepDistiller), 100 classes, one 32 x 32 image:
# parameters, multiply-adds of convolutions and linear layers, shapes of the maps, size of the pooled features.
PUBLISHED: dict[str, tuple[int, int, tuple[tuple[int, int, int], ...], int]] = {
    "resnet8": (83_892, 12_507_392, RESNET, 64),
    "resnet14": (181_108, 26_663_168, RESNET, 64),
    "resnet20": (278_324, 40_818_944, RESNET, 64),
    "resnet32": (472_756, 69_130_496, RESNET, 64),
    "resnet44": (667_188, 97_442_048, RESNET, 64),
    "resnet56": (861_620, 125_753_600, RESNET, 64),
    "resnet110": (1_736_564, 253_155_584, RESNET, 64),
    "resnet8x4": (1_233_540, 177_071_104, RESNET_X4, 256),
    "resnet32x4": (7_433_860, 1_083_040_768, RESNET_X4, 256),
    "ResNet50": (23_705_252, 1_298_014_208, RESNET_50, 2048),
    "wrn_16_1": (180_916, 26_663_168, RESNET, 64),
    "wrn_16_2": (703_284, 101_118_464, WRN_2, 128),
    "wrn_40_1": (569_780, 83_286_272, RESNET, 64),
    "wrn_40_2": (2_255_156, 327_610_880, WRN_2, 128),
    "vgg8": (3_965_028, 96_192_512, VGG, 512),
    "vgg11": (9_277_284, 209_438_720, VGG, 512),
    "vgg13": (9_462_180, 284_936_192, VGG, 512),
    "vgg16": (14_774_436, 398_182_400, VGG, 512),
    "vgg19": (20_086_692, 511_428_608, VGG, 512),
    "MobileNetV2": (812_836, 6_523_648, MOBILE, 1280),
    "ShuffleV1": (949_258, 38_691_456, SHUFFLE_1, 960),
    "ShuffleV2": (1_355_528, 44_504_448, SHUFFLE_2, 1024),
}
FAMILIES = ["resnet8x4", "ResNet50", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", "resnet18"]


def cost(network: nn.Module, x: torch.Tensor) -> int:
    """Multiply-adds of convolutions and linear layers for `x [1, C, H, W]`."""
    counted = []

    def count(layer: Any, _: Any, out: torch.Tensor) -> None:
        counted.append(out.numel() * layer.weight[0].numel())

    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    network(x)
    for handle in handles:
        handle.remove()
    return sum(counted)


class WithHead(nn.Module):
    def __init__(self, encoder: Any, classes: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.dim, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x).pooled)


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_are_the_published_ones(name: str) -> None:
    parameters, multiply_adds, maps, dim = PUBLISHED[name]
    with torch.device("meta"):  # sizes, not numbers
        network, x = WithHead(CIFAR[name](3), 100), torch.empty(1, 3, 32, 32)
        features = network.encoder(x)
        assert sum(p.numel() for p in network.parameters()) == parameters
        assert cost(network, x) == multiply_adds
    assert tuple(tuple(m.shape[1:]) for m in features.maps) == maps
    assert network.encoder.map_channels == tuple(channels for channels, _, _ in maps)
    assert features.pooled.shape == (1, dim)
    assert network.encoder.dim == dim


def test_none_is_missing() -> None:
    assert set(CIFAR) == set(PUBLISHED)


def test_the_figures_are_those_of_the_reference() -> None:
    path = Path(__file__).parents[3] / "shared/reference/nets.json"
    if not path.is_file():
        pytest.skip("the published reference values do not lie beside this checkout")
    found = {
        name: (own["params"], own["macs"], tuple(tuple(shape) for shape in own["features"]))
        for name, own in json.loads(path.read_text()).items()
    }
    assert found == {name: (size, cost, (*maps, (dim,))) for name, (size, cost, maps, dim) in PUBLISHED.items()}


@pytest.mark.parametrize(("name", "parameters"), [("resnet18", 11_689_512), ("resnet34", 21_797_672)])
def test_imagenet_resnets_are_the_well_known_ones(name: str, parameters: int) -> None:
    with torch.device("meta"):
        network = WithHead(IMAGENET[name](3), 1000)
        features = network.encoder(torch.empty(1, 3, 224, 224))
        assert sum(p.numel() for p in network.parameters()) == parameters
    shapes = [tuple(m.shape[1:]) for m in features.maps]
    assert shapes == [(64, 56, 56), (64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_learns(name: str) -> None:
    encoder = {**CIFAR, **IMAGENET}[name](3, size=32)
    encoder(torch.rand(8, 3, 32, 32)).pooled.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_sizes_hold_at_other_inputs(name: str) -> None:
    encoder = {**CIFAR, **IMAGENET}[name](2, size=16).eval()
    for size in (16, 17, 40):
        features = encoder(torch.rand(1, 2, size, size))
        assert tuple(m.shape[1] for m in features.maps) == encoder.map_channels
        assert features.pooled.shape == (1, encoder.dim)


@pytest.mark.parametrize("name", ["resnet8x4", "ResNet50", "vgg8", "ShuffleV1"])
def test_pooled_is_the_mean_of_the_last_map(name: str) -> None:
    features = CIFAR[name](3).eval()(torch.rand(2, 3, 32, 32))
    torch.testing.assert_close(features.pooled, features.maps[-1].mean((2, 3)))
    assert features.maps[-1].min() >= 0


def test_wide_resnets_activate_only_behind_the_last_map() -> None:
    features = CIFAR["wrn_16_2"](3)(torch.rand(4, 3, 32, 32))
    assert features.maps[-1].min() < 0 <= features.pooled.min()


def test_a_name_leaves_only_the_input_to_choose() -> None:
    encoder = RGB().encoder({"name": "resnet8", "size": 48, "mean": (0.5, 0.5, 0.5)})
    assert encoder.preprocessing.size == 48
    assert encoder.preprocessing.mean == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="resnet8: unknown setting 'depth'"):
        RGB().encoder({"name": "resnet8", "depth": 14})
    with pytest.raises(ValueError, match="no 'resnet32x8', did you mean 'resnet32x4'"):
        RGB().encoder({"name": "resnet32x8"})


def test_a_depth_between_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="nearest depths are 16 and 22"):
        WideResNet(3, depth=18)
