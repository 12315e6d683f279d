"""Batches of a plain loader, for `wcord.distill`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor

from pipeline.common.errors import UserError
from pipeline.data.rows import length, take_rows
from pipeline.data.views import Batch

Batches = Iterable[Any] | Callable[[int], Iterable[Any]]


@dataclass(frozen=True)
class PlainData:
    """A loader that is iterated again for each epoch, or a function that takes the number of batches to skip.

    torch's random numbers are seeded for each epoch before the loader is iterated, and for each step before its batch
    is read. The order of a `DataLoader` with `shuffle=True` is therefore the same in a resumed run, which reads and
    drops the batches of its epoch that were already used. Random numbers from other sources (numpy, a generator of the
    loader) are not restored.

    Args:
        given: The loader or function.
        seed: Seed of the run.
    """

    given: Batches
    seed: int

    @property
    def samples(self) -> int:
        """Number of samples if the loader reports it, else number of batches, else 0."""
        dataset = getattr(self.given, "dataset", self.given)
        return len(dataset) if isinstance(dataset, Sized) else 0

    @property
    def steps(self) -> int | None:
        """Batches per epoch, if the loader has a length."""
        return len(self.given) if isinstance(self.given, Sized) else None

    def first(self) -> Batch:
        """The first batch, on the CPU."""
        if not callable(self.given) and iter(self.given) is self.given:
            raise UserError(
                "data: is an iterator, which can be read only once, so the run could not be resumed. Pass a loader, or "
                "a function that takes the number of batches to skip: lambda start: wcord.stream(..., start=start)."
            )
        for batch in self.given(0) if callable(self.given) else self.given:
            return as_batch(batch, 0)
        raise UserError("data: yielded no batches. Check that the loader is not empty.")

    def read(self, start: int, accelerator: Accelerator) -> Iterator[Batch]:
        """Read the batches of this process: an equal part of each global batch.

        Args:
            start: Number of batches to skip.
            accelerator: The accelerator.

        Yields:
            Batches on the device, endlessly.
        """
        step, ranks, rank = start, accelerator.num_processes, accelerator.process_index
        for raw in self._raw(start):
            step += 1
            batch = as_batch(raw, step)
            size = length(batch)
            if size % ranks:
                raise UserError(
                    f"data: a batch of {size} samples cannot be divided among {ranks} processes. Use a batch size "
                    "that is divisible by the number of processes; the last batch may need drop_last=True."
                )
            rows = slice(size // ranks * rank, size // ranks * (rank + 1))
            yield send_to_device(take_rows(batch, rows) | {"skipped": []}, accelerator.device)

    def _raw(self, start: int) -> Iterator[Any]:
        if callable(self.given):
            yield from self.given(start)
            raise UserError(
                "data: the batches ended before train.steps was reached; yield batches endlessly, or lower steps."
            )
        steps = self.steps
        epoch, skip = divmod(start, steps) if steps else (0, start)
        while True:
            torch.manual_seed(hash((self.seed, epoch)))
            batches, count = iter(self.given), 0
            while True:
                torch.manual_seed(hash((self.seed, epoch, count)))
                try:
                    batch = next(batches)
                except StopIteration:
                    break
                count += 1
                if skip:
                    skip -= 1
                else:
                    yield batch
            if not count:
                raise UserError("data: yielded no batches. Check that the loader is not empty.")
            epoch += 1


def as_batch(raw: Any, step: int) -> Batch:
    """Convert a batch of a loader.

    Args:
        raw: A dict with `student`, and `teacher`, `label` and so on; `(input, label)` for one input of both networks;
            `(teacher input, student input)`; or `(teacher input, student input, label)`. A label is int64 `[B]`.
        step: Number of the step, for the keys of samples without keys.

    Raises:
        UserError: The batch has another form.
    """
    batch: Batch
    if isinstance(raw, dict) and "student" in raw:
        batch = {"teacher": raw["student"], **raw}
    elif isinstance(raw, (list, tuple)) and len(raw) == 2 and _is_label(raw[1]):
        batch = {"teacher": raw[0], "student": raw[0], "label": raw[1]}
    elif isinstance(raw, (list, tuple)) and len(raw) in (2, 3):
        batch = dict(zip(("teacher", "student", "label"), raw, strict=False))
    elif isinstance(raw, Tensor):
        batch = {"teacher": raw, "student": raw}
    else:
        raise UserError(
            f"data: a batch is a {type(raw).__name__}; it must be a dict with `student` and `teacher`, or a tuple "
            "(input, label), (teacher input, student input), or (teacher input, student input, label)."
        )
    batch.pop("skipped", None)
    if "key" not in batch:
        batch["key"] = [f"{step}/{i}" for i in range(length(batch))]
    return batch


def _is_label(x: Any) -> bool:
    return isinstance(x, Tensor) and x.ndim == 1 and not x.is_floating_point()
