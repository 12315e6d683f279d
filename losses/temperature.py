"""The temperature of a contrast, learnt within bounds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEAST, LARGEST = 0.01, 1.0


def bounded_temperature(log_temperature: Tensor) -> Tensor:
    """`exp` of a parameter that is kept within [log 0.01, log 1].

    The parameter itself is put back: a clamp of the value would have no gradient beyond a bound, and what an optimiser
    carried there could never return.
    """
    with torch.no_grad():
        log_temperature.clamp_(math.log(LEAST), math.log(LARGEST))
    return log_temperature.exp()
