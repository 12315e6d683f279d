"""On a CPU, run the frozen teacher on the next batch in parallel with the student."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import chain

import torch
from accelerate import Accelerator

from pipeline.common.flops import FlopCounter
from pipeline.data.views import Batch
from pipeline.models.distillation import Distillation


def teach_ahead(batches: Iterator[Batch], model: Distillation, accelerator: Accelerator) -> Iterator[Batch]:
    """Replace the teacher's input in each batch by its features, which are computed in a parallel thread.

    In small operations, threads mostly wait for each other. Two networks in parallel, each with half of torch's
    threads, keep the cores busy.

    Args:
        batches: The batches.
        model: The model.
        accelerator: The accelerator.

    Yields:
        The batches, with an additional entry `loading`: the seconds that the thread waited for data. The first batch
        also has an entry `counted`: the FLOPs of the teacher.
    """
    threads = torch.get_num_threads()
    # In the main thread: this starts the loader processes, which do not exit cleanly if forked from another thread.
    batches = chain([next(batches)], batches)

    def following(counter: FlopCounter | None = None) -> Batch:
        torch.set_num_threads(max(threads // 2, 1))  # only for this thread
        before = time.perf_counter()
        batch = next(batches)
        loading = time.perf_counter() - before
        with accelerator.autocast(), counter or nullcontext():
            taught = batch | {"teacher": model.teach(batch), "loading": loading}
        return taught | {"counted": counter} if counter else taught

    torch.set_num_threads(max(threads - threads // 2, 1))
    try:
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(following, FlopCounter())
            while True:
                batch = coming.result()
                coming = pool.submit(following)
                yield batch
    finally:
        torch.set_num_threads(threads)


def pays(model: Distillation, accelerator: Accelerator) -> bool:
    """Whether the teacher runs in a single process on a CPU with several threads."""
    return (
        accelerator.device.type == "cpu"
        and accelerator.num_processes == 1
        and torch.get_num_threads() > 1
        and "teacher" in model.views
        and model.micro_batch is None
    )
