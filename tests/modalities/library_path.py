"""A pytest plugin that makes timm, torchvision and open_clip importable beside a CPU build of torch.

`make setup` installs them in a folder of their own, since an installed torchvision that does not load breaks the model
classes of transformers. Only processes that load this plugin see the folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

LIBRARIES = Path(sys.prefix) / "libraries"
OPERATORS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def enable() -> None:
    """Put the folder on the path, and define the operators of torchvision that a CPU build lacks."""
    sys.path.append(str(LIBRARIES))
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in OPERATORS.items():
        library.define(name + schema)
    globals()["_kept"] = library  # its definitions end with the object


if LIBRARIES.is_dir():
    enable()
