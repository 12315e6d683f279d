"""Public datasets that can be packed from their published files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.packing.recipes.binary_images import cifar10, cifar100, stl10
from pipeline.packing.recipes.captions import coco, flickr8k
from pipeline.packing.recipes.imagenet import imagenet
from pipeline.packing.recipes.plan import Plan, check_unique
from pipeline.packing.recipes.rgbd import nyu_depth_v2, sun_rgbd
from pipeline.packing.recipes.sounds import esc50, speech_commands

KNOWN: dict[str, Callable[[Path], Plan]] = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "stl10": stl10,
    "imagenet": imagenet,
    "esc50": esc50,
    "speech_commands": speech_commands,
    "flickr8k": flickr8k,
    "coco": coco,
    "nyu_depth_v2": nyu_depth_v2,
    "sun_rgbd": sun_rgbd,
}


def plan(name: str, source: Path) -> Plan:
    """Plan one of `KNOWN`.

    Args:
        name: Name of the dataset.
        source: Folder with the extracted files.

    Raises:
        UserError: The dataset is unknown, or files are missing.
    """
    if name not in KNOWN:
        raise UserError(f"{name}: unknown dataset; choose one of {', '.join(KNOWN)}.")
    found = KNOWN[name](source)
    if not found.samples:
        raise UserError(f"{source}: contains no samples of {name}; extract the dataset into this folder.")
    check_unique(found.samples)
    return found
