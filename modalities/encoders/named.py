"""Encoders for networks that papers refer to by name."""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Ge

from modalities.encoders.base import Encoder
from modalities.encoders.mobilenet import MobileNetV2
from modalities.encoders.resnet import FourStageResNet, ResNet
from modalities.encoders.shufflenet import ShuffleV1, ShuffleV2
from modalities.encoders.vgg import VGG
from modalities.encoders.wide_resnet import WideResNet


def named(family: type[Encoder], pixels: int, **settings: Any) -> type[Encoder]:
    """Make an encoder class with fixed settings; a config can only set its input.

    Args:
        family: The class of the network.
        pixels: Default input size in pixels.
        settings: Keywords that are fixed.
    """

    class Named(family):  # type: ignore[valid-type,misc]
        def __init__(
            self,
            channels: int,
            *,
            size: Annotated[int, Ge(16)] = pixels,
            mean: tuple[float, ...] | None = None,
            std: tuple[float, ...] | None = None,
        ) -> None:
            super().__init__(channels, size=size, mean=mean, std=std, **settings)

    return Named


CIFAR: dict[str, type[Encoder]] = {
    **{f"resnet{depth}": named(ResNet, 32, depth=depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": named(ResNet, 32, depth=depth, width=64, stem_width=32) for depth in (8, 32)},
    **{f"wrn_{n}_{k}": named(WideResNet, 32, depth=n, widen=k) for n in (16, 40) for k in (1, 2)},
    **{f"vgg{depth}": named(VGG, 32, depth=depth) for depth in (8, 11, 13, 16, 19)},
    "ResNet50": named(FourStageResNet, 32, blocks=(3, 4, 6, 3), bottleneck=True, shrink=False),
    "MobileNetV2": MobileNetV2,
    "ShuffleV1": ShuffleV1,
    "ShuffleV2": ShuffleV2,
}
"""For 32 x 32 pixels: the networks of Tian, Krishnan and Isola (2020, arXiv 1910.10699) and later work."""

IMAGENET: dict[str, type[Encoder]] = {
    "resnet18": named(FourStageResNet, 224, blocks=(2, 2, 2, 2)),
    "resnet34": named(FourStageResNet, 224, blocks=(3, 4, 6, 3)),
}
"""For 224 x 224 pixels (He et al. 2016)."""
