"""CPU time per sample and stage of the stream, on photos of 32 x 32 pixels: see `python -m benchmarks.loader`."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import psutil
import torch

from modalities import RGB
from pipeline.data import prepare, stream
from pipeline.data.augmentation import Augmentation
from pipeline.data.source import Source, open_split
from pipeline.data.stream import TrainStream, loader
from pipeline.data.task import Task
from pipeline.data.views import View

BATCH, SIDE, PAD = 64, 32, (4, 32)
CPU = torch.device("cpu")
REST = "everything else"


SHIFTED = Augmentation(flip=True, pad=PAD)
"""Shifted by up to 4 pixels and mirrored, as is usual for CIFAR."""


def photo_batches(folder: Path, workers: int, augmentation: Augmentation = SHIFTED) -> Iterator[Any]:
    """Batches of a dataset of `small_photos.write` for a student and a teacher."""
    view = View(RGB(jitter=0.0), SIDE)
    batches = TrainStream(
        open_split(folder, "train", "label"),
        {"student": view, "teacher": view},
        augmentation,
        batch=BATCH,
    )
    return loader(batches, workers, CPU)


def cpu_seconds() -> float:
    """CPU time of this process and its running children, such as loader processes."""
    children = [process.cpu_times() for process in psutil.Process().children()]
    return time.process_time() + sum(times.user + times.system for times in children)


def cpu_per_batch(batches: Iterator[Any], steps: int) -> float:
    """CPU seconds per batch, including loader processes, after as many batches to warm up."""
    for _ in range(steps):
        next(batches)
    begun = cpu_seconds()
    for _ in range(steps):
        next(batches)
    return (cpu_seconds() - begun) / steps


class Stopwatch:
    """CPU time of this thread by stage. The time of a stage that another stage calls counts only for the inner one.

    Attributes:
        seconds: Stage -> seconds.
    """

    def __init__(self) -> None:
        self.seconds = defaultdict[str, float](float)
        self.stages, self.since = [REST], time.thread_time()

    def _switch(self) -> None:
        now = time.thread_time()
        self.seconds[self.stages[-1]] += now - self.since
        self.since = now

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time added to a stage."""

        def run(*values: Any, **keywords: Any) -> Any:
            self._switch()
            self.stages.append(stage)
            try:
                return function(*values, **keywords)
            finally:
                self._switch()
                self.stages.pop()

        return run

    def iterated(self, stage: str, function: Callable[..., Iterable[Any]]) -> Callable[..., Iterator[Any]]:
        """A function that returns an iterator, with the time for its items added to a stage."""

        def run(*values: Any) -> Iterator[Any]:
            return iter(self.timed(stage, iter(function(*values)).__next__), None)

        return run


def timed_stages(folder: Path, epochs: int) -> dict[str, float]:
    """CPU seconds per sample by stage, in this process."""
    watch = Stopwatch()
    places: list[tuple[Any, str, str]] = [
        (Source, "complete", "checking headers"),
        (prepare, "meta_of", "metadata and label"),
        (Task, "read", "metadata and label"),
        (prepare, "decode_member", "decoding"),
        (Augmentation, "geometry", "drawing random numbers"),
        (prepare, "generator", "drawing random numbers"),
        (RGB, "augment", "augmentation"),
        (prepare.Prepare, "collate", "collating"),
        (stream, "send_to_device", "moving to the device"),
    ]
    with ExitStack() as stack:
        stack.enter_context(
            patch.object(stream, "raw_samples", watch.iterated("tar reading and shuffling", stream.raw_samples))
        )
        for owner, name, stage in places:
            stack.enter_context(patch.object(owner, name, watch.timed(stage, getattr(owner, name))))
        batches, steps = photo_batches(folder, 0), open_split(folder, "train", "label").samples // BATCH
        for epoch in range(1 + epochs):
            if epoch == 1:  # the first one hashes the shards
                watch.seconds.clear()
            for _ in range(steps):
                next(batches)
        watch.timed(REST, lambda: None)()
    return {stage: seconds / (epochs * steps * BATCH) for stage, seconds in watch.seconds.items()}


def profile(folder: Path, rounds: int = 3, epochs: int = 2) -> None:
    """Print the CPU time per sample of each stage: medians over the rounds."""
    steps = epochs * open_split(folder, "train", "label").samples // BATCH
    found: list[dict[str, float]] = []
    for _ in range(rounds):
        stages = timed_stages(folder, epochs)
        alone, apart = (cpu_per_batch(photo_batches(folder, workers), steps) / BATCH for workers in (0, 1))
        stages["transfer between processes (1 worker)"] = apart - alone
        stages["total without measuring, 0 workers"] = alone
        stages["total without measuring, 1 worker"] = apart
        found.append(stages)
    print(f"{'stage':40s} CPU µs a sample")
    for stage in sorted(found[0], key=lambda stage: (stage.startswith("total"), -found[0][stage])):
        print(f"{stage:40s} {1e6 * median(one[stage] for one in found):8.1f}")
