"""The prior that anchors a transport plan to the true pairs."""

from __future__ import annotations

import torch
from torch import Tensor


def anchored_log_prior(marginal: Tensor, anchor: float) -> Tensor:
    """Compute the log of the anchored prior, `log((1 - a) diag(m) + a m m')`.

    Args:
        marginal: Marginal m, `[n]`.
        anchor: a in [0, 1]: 0 fixes each sample to its own pair, 1 carries no information about pairs.

    Returns:
        `[n, n]`.
    """
    return ((1 - anchor) * torch.diag(marginal) + anchor * torch.outer(marginal, marginal)).log()
