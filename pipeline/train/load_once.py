"""Loads a dataset once for all processes of a training: only rank 0 asks a store about shards, or counts them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from pipeline.common.errors import UserError
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import Load, load_dataset
from pipeline.data.stated_counts import refute, refuted_folders

PAUSE = 1.0
"""Seconds between two messages to the waiting processes. Counting may take longer than their timeout."""


def loaded_once(accelerator: Accelerator) -> Load:
    """A function that loads a manifest in rank 0 and hands it to all ranks. All ranks must call it alike.

    Args:
        accelerator: Connects the processes.
    """
    if accelerator.num_processes == 1:
        return load_dataset

    def load(folder: str | Path, label: str, tolerant: bool) -> Dataset:
        wrong = gather_object(refuted_folders())  # another machine may have found that a stated number is wrong

        def own() -> Dataset:
            refute(wrong)
            return load_dataset(folder, label, tolerant)

        return _once(accelerator, own)

    return load


def _once(accelerator: Accelerator, make: Callable[[], Dataset]) -> Dataset:
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(make) if accelerator.is_main_process else None
        outcome: list[Dataset | str | None] = [None]
        while outcome == [None]:
            if future is not None:
                wait([future], timeout=PAUSE)
                outcome = [_outcome(future) if future.done() else None]
            broadcast_object_list(outcome)
    (made,) = outcome
    if not isinstance(made, Dataset):
        raise UserError(str(made))
    return made


def _outcome(future: Future[Dataset]) -> Dataset | str:
    """The manifest, or the message of a UserError."""
    try:
        return future.result()
    except UserError as error:
        return str(error)
