"""A feature bank: the latest features of each training sample, from which rows are drawn in every step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from losses.bank import last_occurrence, mix, random_bits
from losses.finite import all_finite


class FeatureBank(nn.Module):
    """Row-aligned tensors (features, labels, groups) with one row per training sample.

    Rows are buffers, so they are saved in checkpoints. `filled [samples]` marks rows that have been written. Write the
    gathered batch: all ranks then have the same bank and draw the same rows.

    Args:
        samples: Size of the training set.
        drawn: Number of rows per draw, at most `samples`.
        columns: Name -> (width, dtype); width 0 for scalars.
    """

    filled: Tensor
    seed: Tensor
    steps: Tensor

    def __init__(self, samples: int, drawn: int, **columns: tuple[int, torch.dtype]) -> None:
        super().__init__()
        self.samples, self.drawn = samples, min(drawn, samples)
        self.columns = tuple(columns)
        for name, (width, dtype) in columns.items():
            self.register_buffer(name, torch.zeros((samples, width) if width else (samples,), dtype=dtype))
        self.register_buffer("filled", torch.zeros(samples, dtype=torch.bool))
        self.register_buffer("seed", torch.randint(2**62, ()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def draw(self) -> Tensor:
        """Draw distinct rows with equal probability, as a function of the seed and the step.

        From a random start, the rows are divided into consecutive segments, and one is drawn from each segment.

        Returns:
            Row indices, `[drawn]`.
        """
        bits = random_bits(mix(self.seed + self.steps)[None], self.drawn + 1)[0]
        cut = torch.arange(self.drawn + 1, device=bits.device) * self.samples // self.drawn
        return (cut[:-1] + (bits[:-1] * cut.diff() >> 31) + (bits[-1] * self.samples >> 31)) % self.samples

    def all(self) -> Tensor:
        """All row indices, `[samples]`, in order."""
        return torch.arange(self.samples, device=self.seed.device)

    def keys(self, samples: int) -> Tensor:
        """Make a random key for each sample of the global batch, for separate draws.

        Args:
            samples: Size of the global batch.

        Returns:
            int64 `[samples]`, a function of the seed, the step and the position.
        """
        return mix(mix(self.seed + self.steps) + torch.arange(samples, device=self.seed.device))

    def read(self, name: str, rows: Tensor) -> Tensor:
        """Copy rows of a column."""
        column: Tensor = getattr(self, name)
        return column[rows]

    @torch.no_grad()
    def write(self, index: Tensor, **rows: Tensor) -> None:
        """Replace rows in every column. If any value is not finite, no row is replaced, but the step still counts.

        Args:
            index: Row indices, `[B]`, at least 0. If an index occurs twice, the last row is used.
            rows: Column -> values, `[B, ...]`.
        """
        last, finite = last_occurrence(index, self.samples), all_finite(*rows.values())
        for name in self.columns:
            column: Tensor = getattr(self, name)
            column[index] = torch.where(finite, rows[name].detach()[last].to(column.dtype), column[index])
        self.filled[index] |= finite
        self.steps += 1
