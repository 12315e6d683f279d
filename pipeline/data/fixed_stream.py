"""Batches of a fixed part of a split, the same for any number of processes and workers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import IterableDataset

from pipeline.common.errors import UserError
from pipeline.data.prepare import Prepare
from pipeline.data.source import Source
from pipeline.data.stream import Drawn, Fault, assemble, worker_place
from pipeline.data.views import Batch, ViewSpec


class FixedStream(IterableDataset[Any]):
    """Batches without augmentation, spread evenly over a split, for measures that compare the samples of a batch.

    Each process gets the same number of batches of the same size, and the batches of all processes together do not
    depend on their number. If the split is smaller, batches overlap so that they are full. A sample that cannot be used
    is replaced by another one of its batch. Samples that occur twice have the same `index`.

    Iteration yields batches, or a `Fault` as the last item.

    Args:
        source: The split.
        views: Role -> views of the network.
        batch: Samples of a global batch. It is reduced to the size of the split and to `most`, and then rounded up to a
            multiple of `ranks`.
        most: Maximum number of samples, rounded up to whole batches.
        ranks: Number of processes that share the batches.
        rank: Rank of this process.
    """

    def __init__(
        self, source: Source, views: Mapping[str, ViewSpec], *, batch: int, most: int, ranks: int = 1, rank: int = 0
    ) -> None:
        super().__init__()
        self.source, self.rank = source, rank
        most = min(most, source.samples)
        self.share = math.ceil(min(batch, most) / ranks)
        self.count = math.ceil(most / (self.share * ranks))
        self.prepare = Prepare(source, views, None)

    def __iter__(self) -> Iterator[Batch | Fault]:
        worker, workers = worker_place()
        try:
            for number in range(worker, self.count, workers):
                yield assemble(self._drawn(number), [])
        except UserError as error:
            yield Fault(str(error))

    def _drawn(self, number: int) -> list[Drawn]:
        """The samples of this process in a batch; the end of the split is followed by its start."""
        total = self.source.samples
        start = (number * total // self.count + self.rank * self.share) % total
        beyond = max(start + self.share - total, 0)
        raws = [*self.source.read(self.prepare.members, start, start + self.share)]
        raws += self.source.read(self.prepare.members, 0, beyond)
        return [Drawn(self.prepare, raw, 0) for raw in raws]
