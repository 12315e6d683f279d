"""Augmentation of training samples: one geometry per sample and epoch, a pure function of seed, epoch and key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

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
        (x, y), flip = self._drawn(self.pad[0], epoch, key)
        left, top, size = x - self.pad[0], y - self.pad[0], self.pad[1]
        return Geometry(left / size, top / size, 1 + left / size, 1 + top / size, flip)

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
        places, flips = self._drawn(self.pad[0], epoch, np.asarray(keys, np.uint64))
        return torch.from_numpy(np.stack(places, 1).view(np.int64)) - self.pad[0], torch.from_numpy(flips)

    def _drawn(self, pad: int, epoch: int, keys: Any) -> tuple[tuple[Any, Any], Any]:
        """Shifts in x and y, in 0..2 * pad, and flips: of one key, a Python integer, or of many, uint64 `[N]`."""
        base = _mix(_mix(_mix(self.seed) + epoch & WORD) + keys & WORD)
        x, y, flip = (_mix(base + number & WORD) >> 40 for number in (1, 2, 3))  # uniform in 24 bits
        steps = 2 * pad + 1
        return (x * steps >> 24, y * steps >> 24), (flip < 1 << 23) & self.flip


WORD = (1 << 64) - 1


def _mix(x: Any) -> Any:
    """A bijection of 64 bits in which each input bit flips about half of the upper output bits.

    It returns the same numbers as `losses.bank.mix`, whose tensors are slow for one key at a time.

    Args:
        x: A Python integer below 2^64, which takes 1 µs, or an array of uint64.

    Source: the finaliser of SplitMix64 (Steele et al. 2014), without its last step.
    """
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & WORD
    return (x ^ x >> 27) * 0x94D049BB133111EB & WORD


WHOLE = Augmentation()
"""No augmentation: whole images, not cropped, shifted or mirrored."""
