"""Public data sets that are packed from the files as their authors publish them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.errors import UserError
from pipeline.recipes import Plan, check_unique
from pipeline.recipes.binary_images import cifar10, cifar100, stl10
from pipeline.recipes.captions import coco, flickr8k
from pipeline.recipes.imagenet import imagenet
from pipeline.recipes.rgbd import nyu_depth_v2, sun_rgbd
from pipeline.recipes.sounds import esc50, speech_commands

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
    """Plan one of `KNOWN` from the folder that it was unpacked into. Raises UserError for files that are not its."""
    if name not in KNOWN:
        raise UserError(f"{name}: no such data set; there are {', '.join(KNOWN)}.")
    found = KNOWN[name](source)
    if not found.samples:
        raise UserError(f"{source}: not one sample of {name} is there; unpack the set into this folder.")
    check_unique(found.samples)
    return found
