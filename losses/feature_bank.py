"""A feature bank: each training sample's last features, by its place in the set, of which every step draws some."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from losses.bank import last_occurrence, mix, random_bits
from losses.finite import all_finite


class FeatureBank(nn.Module):
    """One row a sample of several row-aligned tensors (features, labels, groups).

    Rows are buffers, so that checkpoints hold them; `filled [samples]` tells which of them hold a sample already. Write
    the gathered batch, so that all ranks hold the same bank; they draw the same rows of it.
    """

    filled: Tensor
    seed: Tensor
    steps: Tensor

    def __init__(self, samples: int, drawn: int, **columns: tuple[int, torch.dtype]) -> None:
        """drawn: rows a draw, all of them if there are fewer. columns: name -> (width, dtype), width 0 for scalars."""
        super().__init__()
        self.samples, self.drawn = samples, min(drawn, samples)
        self.columns = tuple(columns)
        for name, (width, dtype) in columns.items():
            self.register_buffer(name, torch.zeros((samples, width) if width else (samples,), dtype=dtype))
        self.register_buffer("filled", torch.zeros(samples, dtype=torch.bool))
        self.register_buffer("seed", torch.randint(2**62, ()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def draw(self) -> Tensor:
        """Rows `[drawn]`, none of them twice and each as likely as any other: a function of the seed and the step.

        The rows are laid end to end from a random one on and cut into pieces, one is drawn from each.
        """
        bits = random_bits(mix(self.seed + self.steps)[None], self.drawn + 1)[0]
        cut = torch.arange(self.drawn + 1, device=bits.device) * self.samples // self.drawn
        return (cut[:-1] + (bits[:-1] * cut.diff() >> 31) + (bits[-1] * self.samples >> 31)) % self.samples

    def read(self, name: str, rows: Tensor) -> Tensor:
        """A copy of those rows of a column."""
        column: Tensor = getattr(self, name)
        return column[rows]

    @torch.no_grad()
    def write(self, index: Tensor, **rows: Tensor) -> None:
        """Replace the rows at `index [B]`, at least 0, in every column; of an index given twice the last counts.

        Rows that are not all finite are left out, all of them; the next draw is another one all the same.
        """
        last, finite = last_occurrence(index, self.samples), all_finite(*rows.values())
        for name in self.columns:
            column: Tensor = getattr(self, name)
            column[index] = torch.where(finite, rows[name].detach()[last].to(column.dtype), column[index])
        self.filled[index] |= finite
        self.steps += 1
