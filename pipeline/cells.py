"""Cells of a matrix side by side: each in a process of its own, on one GPU where there are any."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

from pipeline.errors import UserError

if TYPE_CHECKING:  # it brings torch, which must not look for GPUs before a cell has chosen its own
    from pipeline.config import Config


@dataclass(frozen=True)
class Cell:
    """What one process does: train and evaluate the config's run, or cache its teacher."""

    kind: Literal["run", "cache"]
    config: Config

    @property
    def name(self) -> str:
        """The folder of its run, or of its cache."""
        if self.kind == "run":
            return self.config.run
        assert self.config.teacher is not None
        return f"{Path(self.config.run).parents[1]}/caches/{self.config.teacher.cache}"


Place = str | None
"""Where a cell runs: a value for CUDA_VISIBLE_DEVICES, or None for the CPU."""


def places(jobs: int | None = None) -> list[Place]:
    """Room for `jobs` cells at a time: by default one a GPU, or one a core where there is none.

    More jobs than GPUs share them; CUDA_VISIBLE_DEVICES says which there are.
    """
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",")[:count] if visible else [str(number) for number in range(count)]
    return [gpus[i % count] if gpus else None for i in range(jobs or count or os.cpu_count() or 1)]


def run_cells(cells: Sequence[Cell], where: Sequence[Place]) -> None:
    """Run all cells, as many at a time as there are places, a line for each that ends.

    Raises UserError that names the cells that failed, once all others are done.
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
            print(f"[{done}/{len(cells)}] {cell.name}", flush=True)
    if failed:
        raise UserError("\n".join([f"{len(failed)} of {len(cells)} runs failed; the others are kept:", *failed]))


def _message(ended: Connection) -> str:
    """What a cell said at its end, "" if all went well."""
    try:
        return str(ended.recv())
    except EOFError:
        return "its process was killed; start the bench again to go on with it"
    finally:
        ended.close()


def _work(cell: Cell, place: Place, threads: int, end: Connection) -> None:
    if place is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = place
    _stop_with_parent()
    log = Path(f"{cell.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    # Progress of cells side by side would tear each other's lines.
    with log.open("a") as file, redirect_stdout(file), redirect_stderr(file), _alone(file):
        try:
            _do(cell, None if place else threads)
            end.send("")
        except UserError as error:
            end.send(str(error))
        except BaseException as error:  # whatever it was, the other cells go on
            traceback.print_exc()
            end.send(f"{type(error).__name__}: {error}; see {log}")


def _do(cell: Cell, threads: int | None) -> None:
    import torch

    from pipeline.cache import cache
    from pipeline.checkpoint import list_checkpoints
    from pipeline.evaluate import evaluate
    from pipeline.run_folder import clear
    from pipeline.train import train

    if threads is not None:
        torch.set_num_threads(threads)
    if cell.kind == "cache":
        cache(cell.config)
    elif not (Path(cell.config.run) / "results.json").is_file():  # else another bench was faster
        run = Path(cell.config.run)
        if list_checkpoints(run / "checkpoints") or not (run / "student").exists():  # else it is trained
            train(cell.config, resume=True)
        evaluate(run)
        clear(run, ["checkpoints"])  # which would be most of a matrix' size


def _stop_with_parent() -> None:
    """End politely, with a checkpoint, if the bench's own process is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _alone(file: TextIO) -> Iterator[None]:
    """No other bench works at this cell meanwhile, such as the rest of one that was killed."""
    try:
        import fcntl
    except ImportError:  # not POSIX
        yield
        return
    fcntl.flock(file, fcntl.LOCK_EX)
    yield
