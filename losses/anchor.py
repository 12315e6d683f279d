"""The prior that anchors a plan to the true pairs."""

from __future__ import annotations

import torch
from torch import Tensor


def anchored_log_prior(marginal: Tensor, anchor: float) -> Tensor:
    """`log((1 - a) diag(m) + a m m')` `[n, n]` for marginals m `[n]`; a in [0, 1]: 0 holds the pairs, 1 knows none."""
    return ((1 - anchor) * torch.diag(marginal) + anchor * torch.outer(marginal, marginal)).log()
