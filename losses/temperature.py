"""The temperature of a contrastive loss, learnt within bounds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEAST, LARGEST = 0.01, 1.0


def bounded_temperature(log_temperature: Tensor) -> Tensor:
    """Compute `exp(log_temperature)` after clamping the parameter to [log 0.01, log 1] in place.

    If only the value were clamped, there would be no gradient out of bounds, and a parameter that the optimiser has
    moved there could never return.
    """
    with torch.no_grad():
        log_temperature.clamp_(math.log(LEAST), math.log(LARGEST))
    return log_temperature.exp()
