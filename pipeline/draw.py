"""How training samples are varied: one geometry for each sample and epoch, a function of seed, epoch and key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from losses.bank import mix
from modalities.base import Geometry


@dataclass(frozen=True)
class Draw:
    """The ranges of the shared geometry: of a crop's area, or else of a shift; and whether half is mirrored.

    pad: (p, n): a shift by up to p of n pixels; what it uncovers is black.
    """

    seed: int
    crop: tuple[float, float] = (1.0, 1.0)
    flip: bool = False
    pad: tuple[int, int] | None = None

    def geometry(self, epoch: int, key: int) -> Geometry:
        """Of one sample, by its key's `digest`."""
        if self.pad is None:
            return Geometry.draw(np.random.default_rng([self.seed, epoch, key]), self.crop, self.flip)
        moves, flips = self.moves(epoch, [key])
        (x, y), size = moves[0].tolist(), self.pad[1]
        return Geometry(x / size, y / size, 1 + x / size, 1 + y / size, bool(flips[0]))

    def moves(self, epoch: int, keys: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """Of many samples at once, but for crops: x and y `[N, 2]` of n pixels, int64, and flips `[N]`, bool."""
        if self.pad is None:
            flips = torch.tensor([self.flip and self.geometry(epoch, int(key)).flip for key in keys])
            return torch.zeros(len(keys), 2, dtype=torch.int64), flips
        digests = torch.from_numpy(np.asarray(keys, np.uint64).view(np.int64))
        base = mix(mix(mix(torch.tensor(self.seed)) + epoch) + digests)
        bits = mix(base[:, None] + torch.arange(1, 4)) >> 40 & 0xFFFFFF  # [N, 3], uniform in 24 bits
        moves = (bits[:, :2] * (2 * self.pad[0] + 1) >> 24) - self.pad[0]
        return moves, (bits[:, 2] < 1 << 23) & self.flip


def digest(text: str) -> int:
    """64 bits that are fixed by a text, which may hold bytes that are none, as names of files do."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
