"""The floating-point format of the networks."""

from __future__ import annotations

import torch
from accelerate import PartialState

from pipeline.config.settings import Config


def precision_of(config: Config) -> str:
    """Resolve `train.precision` for the device of this process.

    Args:
        config: The config.

    Returns:
        fp32, bf16 or fp16.
    """
    precision = config.train.precision
    if precision != "auto":
        return precision
    native = PartialState().device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if native else "fp32"
