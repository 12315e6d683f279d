"""Reads `network.json`, the description of a saved network, which may be damaged or come from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pipeline.common.disk_errors import machine_fault
from pipeline.common.errors import UserError
from pipeline.common.run_format import check_format
from pipeline.data.views import ViewSpec, several

DESCRIPTION = "network.json"
SPACE = "space.safetensors"
"""The embedding space that a student shares with its teacher, next to its description."""

LARGEST = 1 << 30
"""Bytes of tensors that building a network may need beyond four times the size of its weights file."""

LARGEST_INPUT = 1 << 14
"""Width and height in pixels of the largest input."""

FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)


def read_description(folder: Path) -> dict[str, Any]:
    """Read the description in a folder.

    Raises:
        UserError: There is none, it cannot be read, or a newer version wrote it.
        ValueError: It is damaged.
    """
    path = folder / DESCRIPTION
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: not found. Use the run folder of a completed training (`wcord train`).") from None
    except OSError as error:
        unreadable = UserError(f"{path}: cannot be read ({error.strerror}). Train again, or restore the folder.")
        raise machine_fault(error, path) or unreadable from None
    try:
        spec = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(spec, dict):
        raise ValueError("not a JSON object")
    check_format(spec.get("version"), path)
    classes = spec.get("classes")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise ValueError("classes: not a list of names")
    return spec


def inside(folder: Path, value: Any) -> Any:
    """Resolve `./name` in a description to a path in the folder. Other values stay as they are.

    Raises:
        ValueError: The path is absolute or leads out of the folder.
    """
    if not isinstance(value, str):
        return value
    if Path(value).is_absolute():
        raise ValueError(f"{value} is an absolute path, not one in the folder")
    return str(_within(folder, value)) if value.startswith("./") else value


def part_of(folder: Path, value: Any) -> Path:
    """The folder of a part of a joint network, which is a folder in the folder of the joint network.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(value, str) or not value.startswith("./"):
        raise ValueError(f"networks: {value!r} is not a relative path such as ./0")
    if (path := _within(folder, value)) == folder.resolve():
        raise ValueError(f"networks: {value} is the joint network itself")
    return path


def check_size(sight: ViewSpec) -> None:
    """Check that the inputs of a network have a size that a picture can have.

    Raises:
        ValueError: They do not.
    """
    for view in several(sight):
        if not isinstance(view.size, int) or not 0 < view.size <= LARGEST_INPUT:
            raise ValueError(f"invalid input size: {view.size} pixels (allowed: 1 to {LARGEST_INPUT})")


def _within(folder: Path, value: str) -> Path:
    path = (folder / value).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{value} is outside the folder")
    return path


class Bounded(TorchFunctionMode):
    """Rejects a network that needs far more memory than its weights file has, before it is allocated.

    Args:
        weights: The weights file.

    Raises:
        MemoryError: When a tensor is created beyond the bound.
    """

    def __init__(self, weights: Path) -> None:
        super().__init__()
        self.left = LARGEST + 4 * (weights.stat().st_size if weights.is_file() else 0)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count the bytes of new tensors."""
        if func in FACTORIES:
            planned = func(*args, **{**(kwargs or {}), "device": "meta"})
            self.left -= planned.nbytes if isinstance(planned, Tensor) else 0
            if self.left < 0:
                raise MemoryError("its settings need far more memory than its weights have")
        return func(*args, **(kwargs or {}))
