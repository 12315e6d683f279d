"""A training set of small photos held on the device: decoded once, then cut, mirrored and batched there.

Pixels are those of the stream wherever the photos have the encoder's size: both take their geometry from `Draw`, and a
shift or a flip moves whole pixels. (Others are scaled once, before the shift.) The order is another: each epoch is one
permutation of the whole set, a function of (seed, epoch), and every rank takes its part of each global batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count

import numpy as np
import psutil
import torch
from torch import Tensor

from modalities import RGB
from pipeline.draw import Draw, digest
from pipeline.errors import UserError
from pipeline.prepare import Batch, Sight, View, several
from pipeline.source import Source
from pipeline.stream import EvalStream, loader, steps_per_epoch


@dataclass(frozen=True)
class Plan:
    """A rank's epoch. rows: of the set `[steps, B]`; moves: x and y `[steps, B, 2]` of n pixels; flips `[steps, B]`."""

    rows: Tensor
    moves: Tensor
    flips: Tensor
    keys: list[list[str]]


class InMemory:
    """Endless batches for one rank, from batch `start` on, like those of `TrainStream`.

    batch: samples a rank and step. workers: processes that decode at the start. Raises UserError for anything but
    photos without jitter, for a set that would take over half of the free memory, and as the stream does.
    """

    def __init__(
        self,
        source: Source,
        views: Mapping[str, Sight],
        draw: Draw,
        *,
        batch: int,
        ranks: int = 1,
        rank: int = 0,
        start: int = 0,
        workers: int = 0,
        device: torch.device,
    ) -> None:
        self.views, self.draw, self.device = dict(views), draw, device
        self.batch, self.ranks, self.rank, self.start = batch, ranks, rank, start
        self.steps_per_epoch = steps_per_epoch(source, batch * ranks)
        if source.mask:
            raise UserError("data.in_memory: holds no masks; set data.in_memory=false.")
        distinct = list(dict.fromkeys(view for sight in views.values() for view in several(sight)))
        for view in distinct:
            if type(view.modality) is not RGB or view.modality.jitter > 0:  # luminance is a subclass
                raise UserError(
                    f"data.in_memory: holds photos without jitter alone, not {view.modality}. Set the modality to "
                    "{name: rgb, jitter: 0}, also of a teacher's run, or data.in_memory=false."
                )
        self._check_memory(source, distinct)
        self.images = {view: self._black(source.samples, view) for view in distinct}
        self.keys = [""] * source.samples
        self.label, self.group = (torch.full((source.samples,), -1, device=device) for _ in range(2))
        self._read(source, distinct, workers)
        self.digests = np.array([digest(key) for key in self.keys], np.uint64)

    def __iter__(self) -> Iterator[Batch]:
        plan, planned = None, -1
        for step in count(self.start):
            epoch, place = divmod(step, self.steps_per_epoch)
            if plan is None or epoch != planned:
                plan, planned = self._plan(epoch), epoch
            yield self._batch(plan, place)

    def _margin(self, view: View) -> int:
        """Black pixels on each side, as many as a shift may uncover."""
        return round(self.draw.pad[0] * view.size / self.draw.pad[1]) if self.draw.pad is not None else 0

    def _side(self, view: View) -> int:
        return view.size + 2 * self._margin(view)

    def _black(self, samples: int, view: View) -> Tensor:
        side = self._side(view)
        return torch.zeros(samples, side, side, 3, dtype=torch.uint8, device=self.device)

    def _check_memory(self, source: Source, views: list[View]) -> None:
        needed = sum(3 * source.samples * self._side(view) ** 2 for view in views)
        cuda = self.device.type == "cuda"
        free = torch.cuda.mem_get_info(self.device)[0] if cuda else psutil.virtual_memory().available
        if needed > free / 2:
            raise UserError(
                f"data.in_memory: {source.samples} photos take {needed / 1e9:.1f} GB, over half of the "
                f"{free / 1e9:.1f} GB that are free; set data.in_memory=false."
            )

    def _read(self, source: Source, views: list[View], workers: int) -> None:
        """Fill in the whole split."""
        stream = EvalStream(source, {str(number): view for number, view in enumerate(views)}, batch=256)
        for batch in loader(stream, workers, self.device):
            index = batch["index"]
            self.label[index], self.group[index] = batch["label"], batch["group"]
            for place, key in zip(index.tolist(), batch["key"], strict=True):
                self.keys[place] = key
            for number, view in enumerate(views):
                inner = slice(self._margin(view), self._margin(view) + view.size)
                self.images[view][index, inner, inner] = batch[str(number)].permute(0, 2, 3, 1)

    def _plan(self, epoch: int) -> Plan:
        generator = torch.Generator().manual_seed(digest(f"{self.draw.seed}/{epoch}") >> 1)
        order = torch.randperm(len(self.keys), generator=generator)
        shape = self.steps_per_epoch, self.ranks, self.batch
        rows = order[: self.steps_per_epoch * self.ranks * self.batch].view(shape)[:, self.rank]
        moves, flips = self.draw.moves(epoch, self.digests[rows.flatten().numpy()])
        keys = [[self.keys[row] for row in step] for step in rows.tolist()]
        moves, flips = moves.view(*rows.shape, 2), flips.view(rows.shape)
        return Plan(rows.to(self.device), moves.to(self.device), flips.to(self.device), keys)

    def _batch(self, plan: Plan, place: int) -> Batch:
        rows, moves, flips = plan.rows[place], plan.moves[place], plan.flips[place]
        seen = {view: self._cut(view, rows, moves, flips) for view in self.images}
        batch: Batch = {
            role: seen[sight] if isinstance(sight, View) else tuple(seen[view] for view in sight)
            for role, sight in self.views.items()
        }
        told = {"key": plan.keys[place], "index": rows, "label": self.label[rows], "group": self.group[rows]}
        return batch | told | {"skipped": []}

    def _cut(self, view: View, rows: Tensor, moves: Tensor, flips: Tensor) -> Tensor:
        """uint8 `[B, 3, size, size]`, channels last in memory."""
        if self.draw.pad is not None:
            moves = (moves * view.size / self.draw.pad[1]).round().long()
        span = torch.arange(view.size, device=self.device)
        columns = torch.where(flips[:, None], span.flip(0), span) + moves[:, :1] + self._margin(view)  # [B, size]
        lines = span + moves[:, 1:] + self._margin(view)
        return self.images[view][rows[:, None, None], lines[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
