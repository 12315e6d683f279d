"""Run the frozen teacher on a batch before the step: on a CPU, on the next batch in parallel with the student."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import chain
from typing import Protocol

import torch
from accelerate import Accelerator

from losses import Features
from pipeline.common.flops import FlopCounter
from pipeline.data.views import Batch
from pipeline.models.distillation import Distillation


class Teacher(Protocol):
    """What computes the teacher's features of a batch."""

    def teach(self, batch: Batch) -> Features | None:
        """The teacher's features of a batch."""


def teach_now(batches: Iterator[Batch], teacher: Teacher, accelerator: Accelerator) -> Iterator[Batch]:
    """Replace the teacher's input in each batch by its features; see `teach_ahead`, which does it in parallel."""
    counter: FlopCounter | None = FlopCounter()
    while (batch := _following(batches, teacher, accelerator, counter)) is not None:
        counter = None
        yield batch


def teach_ahead(batches: Iterator[Batch], teacher: Teacher, accelerator: Accelerator) -> Iterator[Batch]:
    """Replace the teacher's input in each batch by its features, which are computed in a parallel thread.

    In small operations, threads mostly wait for each other. Two networks in parallel, each with half of torch's
    threads, keep the cores busy.

    Args:
        batches: The batches, at least one.
        teacher: The model.
        accelerator: The accelerator.

    Yields:
        The batches, with an additional entry `loading`: the seconds that the thread waited for data. The first batch
        also has an entry `counted`: the FLOPs of the teacher.
    """
    threads = torch.get_num_threads()
    # In the main thread: this starts the loader processes, which do not exit cleanly if forked from another thread.
    batches = chain([next(batches)], batches)

    def following(counter: FlopCounter | None = None) -> Batch | None:
        torch.set_num_threads(max(threads // 2, 1))  # only for this thread
        return _following(batches, teacher, accelerator, counter)

    torch.set_num_threads(max(threads - threads // 2, 1))
    try:
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(following, FlopCounter())
            while (batch := coming.result()) is not None:
                coming = pool.submit(following)
                yield batch
    finally:
        torch.set_num_threads(threads)


def _following(
    batches: Iterator[Batch], teacher: Teacher, accelerator: Accelerator, counter: FlopCounter | None
) -> Batch | None:
    """The next batch with the teacher's features; None after the last one."""
    before = time.perf_counter()
    if (batch := next(batches, None)) is None:
        return None
    loading = time.perf_counter() - before
    with accelerator.autocast(), counter or nullcontext():
        taught = batch | {"teacher": teacher.teach(batch), "loading": loading}
    return taught | {"counted": counter} if counter else taught


def pays(model: Distillation, accelerator: Accelerator) -> bool:
    """Whether the teacher runs in a single process on a CPU with several threads."""
    return (
        accelerator.device.type == "cpu"
        and accelerator.num_processes == 1
        and torch.get_num_threads() > 1
        and "teacher" in model.views
        and model.micro_batch is None
    )
