"""The Encoder contract: a network that states its dims before any data flows and normalises its own input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from losses import Dims, Features


@dataclass(frozen=True)
class Preprocessing:
    """What an encoder expects: `[C, size, size]`, then `(x - mean) / std` a channel (uint8 is scaled to [0, 1] first)."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Encoder(nn.Module):
    """A network from a batch of one modality to `Features` without logits.

    Subclasses set `dims` in their constructor and write `forward(x) -> Features`, which starts with
    `x = self.normalise(x)`. The preprocessing is the encoder's own, so a teacher and a student of the same
    modality may differ in it.
    """

    dims: Dims

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.register_buffer("mean", _channels(preprocessing.mean), persistent=False)
        self.register_buffer("std", _channels(preprocessing.std), persistent=False)

    def normalise(self, x: Tensor) -> Tensor:
        """Scale `[B, C, H, W]` (uint8 0..255, or float in the modality's units) to what the network was built for."""
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        return (x - self.mean) / self.std

    def forward(self, x: Tensor) -> Features:
        raise NotImplementedError


def _channels(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
