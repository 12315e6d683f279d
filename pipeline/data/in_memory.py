"""A training set of small photos in device memory: decoded once, then shifted, mirrored and batched on the device.

If the photos have the input size of the encoder, the pixels equal those of the stream: both take their geometry from
`Augmentation`, and a shift or a flip moves whole pixels. Other photos are resized once, before the shift. The order
differs from the stream: each epoch is one permutation of the whole set, a function of (seed, epoch), and every rank
takes its part of each global batch.
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
from pipeline.common.errors import UserError
from pipeline.common.hashing import digest
from pipeline.data.augmentation import Augmentation
from pipeline.data.source import Source
from pipeline.data.stream import EvalStream, loader, steps_per_epoch
from pipeline.data.views import Batch, View, ViewSpec, several


@dataclass(frozen=True)
class EpochPlan:
    """The samples and augmentation of one epoch on one rank.

    Attributes:
        rows: Indices of samples, int64 `[steps, B]`.
        moves: Shifts in x and y, int64 `[steps, B, 2]`, in units of 1/n of the image, with n of `Augmentation.pad`.
        flips: Whether to mirror, bool `[steps, B]`.
        keys: Keys of the samples, `[steps][B]`.
    """

    rows: Tensor
    moves: Tensor
    flips: Tensor
    keys: list[list[str]]


class InMemory:
    """Endless training batches for one rank, like `TrainStream`, from device memory.

    Args:
        source: The split.
        views: Role -> views of the network.
        augmentation: The augmentation. Its seed also determines the order of the samples.
        batch: Batch size per rank.
        ranks: Number of processes that share the split.
        rank: Rank of this process.
        start: Index of the first batch, counted from the beginning of the run.
        workers: Number of processes that decode the set at startup.
        device: Device of the set and the batches.

    Raises:
        UserError: A modality is not `rgb` with jitter 0, the task is a mask, the set needs more than half of the free
            memory, or the split cannot be read.
    """

    def __init__(
        self,
        source: Source,
        views: Mapping[str, ViewSpec],
        augmentation: Augmentation,
        *,
        batch: int,
        ranks: int = 1,
        rank: int = 0,
        start: int = 0,
        workers: int = 0,
        device: torch.device,
    ) -> None:
        self.views, self.augmentation, self.device = dict(views), augmentation, device
        self.batch, self.ranks, self.rank, self.start = batch, ranks, rank, start
        self.steps_per_epoch = steps_per_epoch(source, batch * ranks)
        if source.task.mask:
            raise UserError("data.in_memory: masks are not supported. Set data.in_memory=false.")
        distinct = list(dict.fromkeys(view for sight in views.values() for view in several(sight)))
        for view in distinct:
            if type(view.modality) is not RGB or view.modality.jitter > 0:  # luminance is a subclass
                raise UserError(
                    f"data.in_memory: only photos without jitter are supported, not {view.modality}. Set the modality "
                    "(also in the teacher's run) to {name: rgb, jitter: 0}, or set data.in_memory=false."
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
        """Width of the black margin on each side: the largest shift in pixels."""
        pad = self.augmentation.pad
        return round(pad[0] * view.size / pad[1]) if pad is not None else 0

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
                f"data.in_memory: {source.samples} photos need {needed / 1e9:.1f} GB, more than half of the "
                f"{free / 1e9:.1f} GB of free memory. Set data.in_memory=false."
            )

    def _read(self, source: Source, views: list[View], workers: int) -> None:
        """Decode the whole split into the buffers."""
        stream = EvalStream(source, {str(number): view for number, view in enumerate(views)}, batch=256)
        for batch in loader(stream, workers, self.device):
            index = batch["index"]
            self.label[index], self.group[index] = batch["label"], batch["group"]
            for place, key in zip(index.tolist(), batch["key"], strict=True):
                self.keys[place] = key
            for number, view in enumerate(views):
                inner = slice(self._margin(view), self._margin(view) + view.size)
                self.images[view][index, inner, inner] = batch[str(number)].permute(0, 2, 3, 1)

    def _plan(self, epoch: int) -> EpochPlan:
        generator = torch.Generator().manual_seed(digest(f"{self.augmentation.seed}/{epoch}") >> 1)
        order = torch.randperm(len(self.keys), generator=generator)
        shape = self.steps_per_epoch, self.ranks, self.batch
        rows = order[: self.steps_per_epoch * self.ranks * self.batch].view(shape)[:, self.rank]
        moves, flips = self.augmentation.moves(epoch, self.digests[rows.flatten().numpy()])
        keys = [[self.keys[row] for row in step] for step in rows.tolist()]
        moves, flips = moves.view(*rows.shape, 2), flips.view(rows.shape)
        return EpochPlan(rows.to(self.device), moves.to(self.device), flips.to(self.device), keys)

    def _batch(self, plan: EpochPlan, place: int) -> Batch:
        rows, moves, flips = plan.rows[place], plan.moves[place], plan.flips[place]
        seen = {view: self._cut(view, rows, moves, flips) for view in self.images}
        batch: Batch = {
            role: seen[sight] if isinstance(sight, View) else tuple(seen[view] for view in sight)
            for role, sight in self.views.items()
        }
        told = {"key": plan.keys[place], "index": rows, "label": self.label[rows], "group": self.group[rows]}
        return batch | told | {"skipped": []}

    def _cut(self, view: View, rows: Tensor, moves: Tensor, flips: Tensor) -> Tensor:
        """Crop and mirror a batch: uint8 `[B, 3, size, size]`, channels last in memory."""
        if self.augmentation.pad is not None:
            moves = (moves * view.size / self.augmentation.pad[1]).round().long()
        span = torch.arange(view.size, device=self.device)
        columns = torch.where(flips[:, None], span.flip(0), span) + moves[:, :1] + self._margin(view)  # [B, size]
        lines = span + moves[:, 1:] + self._margin(view)
        return self.images[view][rows[:, None, None], lines[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
