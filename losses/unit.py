"""L2 normalisation of feature vectors."""

from __future__ import annotations

import torch
from torch import Tensor


def unit(x: Tensor) -> Tensor:
    """L2-normalise the rows of x, `[..., D]`.

    Rows of zeros remain zero, with zero gradient, whereas `F.normalize` has a gradient of 1e12 there.
    """
    norm = x.norm(dim=-1, keepdim=True)
    return x / norm.masked_fill(norm <= 1e-12, torch.inf)
