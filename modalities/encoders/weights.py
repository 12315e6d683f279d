"""Loads a weight file into a module. Nothing in the file is executed, and every mismatch is an error."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

log = logging.getLogger(__name__)

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training programs store weights in their checkpoints."""


def load_weights(module: nn.Module, path: str | Path, skip: Sequence[str] = ()) -> None:
    """Load a weight file into a module.

    Args:
        module: The module. It is unchanged if the file does not match.
        path: A `.safetensors` file, or a `.pt`, `.pth` or `.bin` file with tensors only.
        skip: Prefixes of tensors that the module may lack, such as those of an unused classifier. Skipped tensors are
            logged.

    Raises:
        ValueError: The file cannot be read or contains pickled objects, or its tensors do not match the module
            (missing, unexpected, or with another shape).
    """
    path = Path(path)
    tensors, own = read_weights(path), module.state_dict()
    unexpected = [name for name in tensors if name not in own]
    skipped = [name for name in unexpected if name.startswith(tuple(skip))]
    unexpected = [name for name in unexpected if name not in skipped]
    missing = [name for name in own if name not in tensors]
    reshaped = [
        f"{name}: {list(tensors[name].shape)} in the file, {list(tensor.shape)} in the network"
        for name, tensor in own.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "with another shape": reshaped}
    wrong = [f"{len(names)} tensors {kind} ({_few(names)})" for kind, names in kinds.items() if names]
    if wrong:
        raise ValueError(
            f"{path} does not match {type(module).__name__}: {'; '.join(wrong)}; use the weight file of this model"
        )
    if skipped:
        log.info("%s: %d tensors are not used: %s", path, len(skipped), _few(skipped))
    module.load_state_dict({name: tensors[name] for name in own})


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a weight file, without the prefix `module.` that DDP adds.

    Args:
        path: See `load_weights`.

    Raises:
        ValueError: The file does not exist, has another format or contains more than tensors.
    """
    cure = "save it with safetensors.torch.save_file(module.state_dict(), 'weights.safetensors')"
    if not path.is_file():
        raise ValueError(f"weights: {path} does not exist")
    if path.suffix not in (".safetensors", ".pt", ".pth", ".bin"):
        raise ValueError(f"weights: {path}: unknown format {path.suffix!r}; {cure}")
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(f"weights: {path} contains pickled objects, which can execute code: {cure}") from None
    except (OSError, RuntimeError, EOFError, ValueError, SafetensorError) as error:
        raise ValueError(f"weights: {path} cannot be read: {str(error).splitlines()[0]}") from None
    for key in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not (isinstance(found, Mapping) and found and all(isinstance(value, Tensor) for value in found.values())):
        raise ValueError(f"weights: {path} is not a dictionary of tensors: {cure}")
    parallel = all(name.startswith("module.") for name in found)
    return {name.removeprefix("module.") if parallel else name: value for name, value in found.items()}


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
