"""The Encoder contract: a network that states its sizes before any data flows and normalises its own input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from losses import Features


@dataclass(frozen=True)
class Preprocessing:
    """What an encoder expects: `[C, size, size]`, then `(x - mean) / std` a channel, uint8 scaled to [0, 1] before."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @staticmethod
    def of(
        channels: int, size: int, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> Preprocessing:
        """Fill in mean 0 and std 1; ValueError unless both have one value a channel and std is positive."""
        mean = (0.0,) * channels if mean is None else tuple(mean)
        std = (1.0,) * channels if std is None else tuple(std)
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != channels:
                raise ValueError(f"{name}: {len(values)} values for {channels} channels; give one a channel")
        if min(std) <= 0:
            raise ValueError(f"std: {list(std)}: every value must be greater than 0")
        return Preprocessing(size, mean, std)


class Encoder(nn.Module):
    """A network from a batch of one modality to `Features` without logits.

    Subclasses set `dim` (D of `pooled`) and `map_channels` (C of each map) in their constructor and write
    `forward(x) -> Features`, which starts with `x = self.normalise(x)`. The preprocessing is the encoder's own, so a
    teacher and a student of the same modality may differ in it.
    """

    dim: int
    map_channels: tuple[int, ...] = ()
    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.register_buffer("mean", _channels(preprocessing.mean), persistent=False)
        self.register_buffer("std", _channels(preprocessing.std), persistent=False)

    def normalise(self, x: Tensor) -> Tensor:
        """Scale `[B, C, H, W]` (uint8 0..255, or float in the modality's units) to what the network was built for."""
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        return (x - self.mean) / self.std

    def forward(self, x: Any) -> Features:
        """What the modality's `collate` made of B samples to `pooled [B, dim]` and a map for each of `map_channels`."""
        raise NotImplementedError

    def extract_features(self, x: Any) -> Any:
        """What `forward` takes as well as the modality's batch, where making it from that is more than tensors."""
        return x

    def portable(self, spec: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """The spec that rebuilds this network, weights aside, from what is in `folder`: a student is taken away in one.

        spec: what it was built from. An encoder that reads files or a hub writes what it needs into a sub-folder and
        names it `./sub-folder`.
        """
        return dict(spec)


def _channels(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
