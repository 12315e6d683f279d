"""Augmentation of training samples: one geometry per sample and epoch, a pure function of seed, epoch and key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from losses.bank import mix
from modalities.base import Geometry
from pipeline.data.random_state import generator
from pipeline.data.settings import Settings


@dataclass(frozen=True)
class Augmentation:
    """Distribution of the random geometry that all views of a sample share: a crop or a shift, and a flip.

    Args:
        seed: Random seed of all draws, and of the order of the samples.
        crop: Smallest and largest area of the crop, as fractions of the image area in (0, 1].
        flip: Whether to mirror half of the samples horizontally.
        pad: (p, n): instead of a crop, shift by up to p pixels at an image size of n. Uncovered pixels are black.
    """

    seed: int = 0
    crop: tuple[float, float] = (1.0, 1.0)
    flip: bool = False
    pad: tuple[int, int] | None = None

    @classmethod
    def from_config(cls, config: Settings) -> Augmentation:
        """The augmentation of a config."""
        return cls(config.seed, config.data.crop, config.data.flip, config.data.pad)

    def __str__(self) -> str:
        """Text for the fingerprint of a cache. Its format must not change, since existing caches contain it."""
        area = f"crop {self.crop[0]} to {self.crop[1]}" if self.pad is None else f"pad {self.pad[0]} of {self.pad[1]}"
        return f"seed {self.seed}, {area}, flip {self.flip}"

    def geometry(self, epoch: int, key: int) -> Geometry:
        """Draw the geometry of one sample.

        Args:
            epoch: The epoch.
            key: The `digest` of the sample's key.
        """
        if self.pad is None:
            return Geometry.draw(generator(self.seed, epoch, key), self.crop, self.flip)
        moves, flips = self.moves(epoch, [key])
        (x, y), size = moves[0].tolist(), self.pad[1]
        return Geometry(x / size, y / size, 1 + x / size, 1 + y / size, bool(flips[0]))

    def moves(self, epoch: int, keys: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """Draw shifts and flips of many samples at once. Crops are not drawn.

        Args:
            epoch: The epoch.
            keys: The `digest` of each sample's key; N of them.

        Returns:
            Shifts in x and y, int64 `[N, 2]`, in units of 1/n of the image; and flips, bool `[N]`.
        """
        if self.pad is None:
            flips = torch.tensor([self.flip and self.geometry(epoch, int(key)).flip for key in keys])
            return torch.zeros(len(keys), 2, dtype=torch.int64), flips
        digests = torch.from_numpy(np.asarray(keys, np.uint64).view(np.int64))
        base = mix(mix(mix(torch.tensor(self.seed)) + epoch) + digests)
        bits = mix(base[:, None] + torch.arange(1, 4)) >> 40 & 0xFFFFFF  # [N, 3], uniform in 24 bits
        moves = (bits[:, :2] * (2 * self.pad[0] + 1) >> 24) - self.pad[0]
        return moves, (bits[:, 2] < 1 << 23) & self.flip


WHOLE = Augmentation()
"""No augmentation: whole images, not cropped, shifted or mirrored."""
