"""Runs the cells of a matrix in parallel, each in its own process, on one GPU if there are any."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from filelock import FileLock

from pipeline.common.console import log_to_console
from pipeline.common.errors import UserError

if TYPE_CHECKING:  # it imports torch, which must not initialise GPUs before a cell has chosen its GPU
    from pipeline.config.settings import Config

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """The work of one process: train and evaluate a run, or cache the teacher's features."""

    kind: Literal["run", "cache"]
    config: Config

    @property
    def name(self) -> str:
        """The folder of its run or cache."""
        if self.kind == "run":
            return self.config.run
        assert self.config.teacher is not None
        return f"{Path(self.config.run).parents[1]}/caches/{self.config.teacher.cache}"


Place = str | None
"""The device of a cell: a value for CUDA_VISIBLE_DEVICES, or None for the CPU."""


def places(jobs: int | None = None) -> list[Place]:
    """The devices on which cells run in parallel.

    Args:
        jobs: Number of parallel cells; None means one per GPU or, without GPUs, one per core. If there are more jobs
            than GPUs, they share the GPUs.

    Returns:
        One entry per job. Only GPUs in CUDA_VISIBLE_DEVICES are used, if it is set.
    """
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",")[:count] if visible else [str(number) for number in range(count)]
    return [gpus[i % count] if gpus else None for i in range(jobs or count or os.cpu_count() or 1)]


def run_cells(cells: Sequence[Cell], where: Sequence[Place]) -> None:
    """Run all cells and print a line for each one that ends.

    Args:
        cells: The cells.
        where: What `places` returned.

    Raises:
        UserError: Cells failed. It is raised after all others are finished.
    """
    context = multiprocessing.get_context("spawn")
    threads = max((os.cpu_count() or 1) // max(min(len(cells), len(where)), 1), 1)
    waiting, free, failed, done = list(cells), list(where), list[str](), 0
    running: dict[Connection, tuple[Cell, Place]] = {}
    while waiting or running:
        while waiting and free:
            cell, place = waiting.pop(0), free.pop(0)
            ours, theirs = context.Pipe(duplex=False)
            context.Process(target=_work, args=(cell, place, threads, theirs)).start()
            theirs.close()
            running[ours] = (cell, place)
        for ended in wait(list(running)):
            assert isinstance(ended, Connection)
            cell, place = running.pop(ended)
            if message := _message(ended):
                failed.append(f"{cell.name}: {message}")
            free.append(place)
            done += 1
            log.info(f"[{done}/{len(cells)}] {cell.name}")
    if failed:
        raise UserError("\n".join([f"{len(failed)} of {len(cells)} runs failed; the others are finished:", *failed]))


def _message(ended: Connection) -> str:
    """The error message of a finished cell; empty if it succeeded."""
    try:
        return str(ended.recv())
    except EOFError:
        return "its process was killed; run the same command again to resume it"
    finally:
        ended.close()


def _work(cell: Cell, place: Place, threads: int, end: Connection) -> None:
    if place is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = place
    _stop_with_parent()
    log_to_console()  # even with `--quiet`, since it goes to the log file of this cell
    file = Path(f"{cell.name}.log")
    file.parent.mkdir(parents=True, exist_ok=True)
    # No other benchmark may run this cell at the same time, e.g. a leftover process of a killed one.
    alone = FileLock(file.with_name(f"{file.name}.lock"))
    # The output of parallel cells would be interleaved.
    with file.open("a") as lines, redirect_stdout(lines), redirect_stderr(lines), alone:
        try:
            _do(cell, None if place else threads)
            end.send("")
        except UserError as error:
            end.send(str(error))
        except BaseException as error:  # the other cells must continue
            traceback.print_exc()
            end.send(f"{type(error).__name__}: {error}; see {file}")


def _do(cell: Cell, threads: int | None) -> None:
    import torch

    from pipeline.evaluate.evaluate_run import evaluate
    from pipeline.runs.checkpoint import list_checkpoints
    from pipeline.runs.folder import clear
    from pipeline.train.cache_teacher import cache
    from pipeline.train.loop import train

    if threads is not None:
        torch.set_num_threads(threads)
    if cell.kind == "cache":
        cache(cell.config)
    elif not (Path(cell.config.run) / "results.json").is_file():  # otherwise, another benchmark has finished it
        run = Path(cell.config.run)
        if list_checkpoints(run / "checkpoints") or not (run / "student").exists():  # otherwise, training is finished
            train(cell.config, resume=True)
        evaluate(run)
        clear(run, ["checkpoints"])  # they would take most of the space of a matrix


def _stop_with_parent() -> None:
    """Stop with a checkpoint if the process of the benchmark is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
