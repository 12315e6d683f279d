"""Loads once for all processes of a training: only rank 0 asks a store about shards, counts them, or asks the Hub."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar, cast

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from pipeline.common.errors import UserError
from pipeline.config.settings import Config
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import Load, load_dataset
from pipeline.data.stated_counts import refute, refuted_folders
from pipeline.models.hub_student import pinned

T = TypeVar("T")

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

        return once(accelerator, own)

    return load


def pin_teacher(config: Config, accelerator: Accelerator) -> Config:
    """A config whose teachers from the Hub have their commit, which rank 0 downloads. All ranks must call it.

    Args:
        config: The config.
        accelerator: Connects the processes.

    Raises:
        UserError: A teacher cannot be downloaded.
    """
    teacher = config.teacher
    if teacher is None or teacher.run is None:
        return config
    runs = [teacher.run] if isinstance(teacher.run, str) else teacher.run
    own = once(accelerator, lambda: [pinned(run) for run in runs])
    found = own[0] if isinstance(teacher.run, str) else own
    return config.model_copy(update={"teacher": teacher.model_copy(update={"run": found})})


def once(accelerator: Accelerator, make: Callable[[], T]) -> T:
    """What rank 0 makes, in all ranks. A UserError of rank 0 is raised in all of them."""
    if accelerator.num_processes == 1:
        return make()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(make) if accelerator.is_main_process else None
        outcome: list[Any] = [None]
        while outcome == [None]:
            if future is not None:
                wait([future], timeout=PAUSE)
                outcome = [_outcome(future) if future.done() else None]
            broadcast_object_list(outcome)
    made, fault = outcome[0]
    if fault is not None:
        raise UserError(fault)
    return cast(T, made)


def _outcome(future: Future[T]) -> tuple[T | None, str | None]:
    """What was made, and the message of a UserError."""
    try:
        return future.result(), None
    except UserError as error:
        return None, str(error)
