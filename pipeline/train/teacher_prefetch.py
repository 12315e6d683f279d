"""On a CPU, run the frozen teacher on the next batch in parallel with the student."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import torch
from accelerate import Accelerator

from pipeline.data.views import Batch
from pipeline.models.distillation import Distillation


def teach_ahead(batches: Iterator[Batch], model: Distillation, accelerator: Accelerator) -> Iterator[Batch]:
    """Replace the input of the teacher in each batch by its features, computed in a parallel thread.

    The threads of a small operation wait for each other at its end. Two networks in parallel keep the cores busy, each
    with half of torch's threads.

    Args:
        batches: The batches.
        model: The model.
        accelerator: The accelerator.

    Yields:
        The batches, also with `loading`, the seconds that the thread waited for data.
    """
    threads = torch.get_num_threads()
    # In the main thread, since it starts the processes of the loader, which do not exit cleanly if forked elsewhere.
    batches = chain([next(batches)], batches)

    def following() -> Batch:
        torch.set_num_threads(max(threads // 2, 1))  # only for this thread
        before = time.perf_counter()
        batch = next(batches)
        loading = time.perf_counter() - before
        with accelerator.autocast():
            return batch | {"teacher": model.teach(batch), "loading": loading}

    torch.set_num_threads(max(threads - threads // 2, 1))
    try:
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(following)
            while True:
                batch = coming.result()
                coming = pool.submit(following)
                yield batch
    finally:
        torch.set_num_threads(threads)


def pays(model: Distillation, accelerator: Accelerator) -> bool:
    """Whether a teacher has to be run, by a single process on a CPU with several threads."""
    return (
        accelerator.device.type == "cpu"
        and accelerator.num_processes == 1
        and torch.get_num_threads() > 1
        and "teacher" in model.views
        and model.micro_batch is None
    )
