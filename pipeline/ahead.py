"""On a CPU, the frozen teacher looks at the next batch while the student learns from this one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import torch
from accelerate import Accelerator

from pipeline.model import Distillation
from pipeline.prepare import Batch


def teach_ahead(batches: Iterator[Batch], model: Distillation, accelerator: Accelerator) -> Iterator[Batch]:
    """The same batches, each with the teacher's features in place of what it sees, made in a thread of its own, and
    with `loading`, the seconds that this thread waited for the data.

    The threads of one small operation wait for each other at its end; two networks side by side keep the cores busy,
    each with its half of torch's threads.
    """
    threads = torch.get_num_threads()
    # In the main thread, for it starts the loader's processes: forked from another one, they could not end in peace.
    batches = chain([next(batches)], batches)

    def following() -> Batch:
        torch.set_num_threads(max(threads // 2, 1))  # of this thread
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
    """Whether there are a teacher to run and threads of one process to share."""
    return (
        accelerator.device.type == "cpu"
        and accelerator.num_processes == 1
        and torch.get_num_threads() > 1
        and "teacher" in model.views
        and model.micro_batch is None
    )
