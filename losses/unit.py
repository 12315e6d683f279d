"""Directions of feature vectors."""

from __future__ import annotations

import torch
from torch import Tensor


def unit(x: Tensor) -> Tensor:
    """`x / |x|` of each row of `[..., D]`. A row of zeros stays so, without gradient: that of `F.normalize` is 1e12."""
    norm = x.norm(dim=-1, keepdim=True)
    return x / norm.masked_fill(norm <= 1e-12, torch.inf)
