"""Recognises tensors sharded by FSDP2 (torch's `DTensor`) without importing `DTensor`, which takes a second."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(value: Any) -> TypeGuard[DTensor]:
    """Whether a value is a sharded tensor. If one exists, its module has already been imported."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def full_tensor(value: Tensor) -> Tensor:
    """Gather a sharded tensor; return any other tensor unchanged. Call it on all ranks."""
    return value.full_tensor() if is_sharded(value) else value
