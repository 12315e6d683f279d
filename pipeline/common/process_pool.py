"""Runs a function over many jobs in several processes, with progress reported from inside the jobs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from pipeline.common.console import log_from_worker, log_level
from pipeline.common.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")
Tick = Callable[[int], None]

START_METHOD = "spawn"
"""A fork would copy locks that other threads hold."""

_tick: Tick = lambda count: None  # noqa: E731 - replaced where `map_jobs` runs the work


def report_progress(count: int = 1) -> None:
    """Report that `count` more samples are done. Call it inside a job."""
    _tick(count)


def map_jobs(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, advance: Tick) -> Iterator[Result]:
    """Run a function over jobs and yield the results in the order of completion.

    With one worker, the jobs run in this process.

    Args:
        function: The work. Its exceptions are raised here.
        jobs: One argument of `function` each; picklable.
        workers: Maximum number of processes.
        advance: Called with the counts that the jobs pass to `report_progress`.

    Raises:
        UserError: A worker process was killed, e.g. because memory ran out.
    """
    global _tick
    if workers <= 1 or len(jobs) <= 1:
        _tick = advance
        try:
            yield from map(function, jobs)
        finally:
            _tick = lambda count: None  # noqa: E731
        return
    context = multiprocessing.get_context(START_METHOD)
    counter, others = context.Value("q", 0), {*multiprocessing.active_children()}
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, _begin, (counter, log_level()))
    try:
        pending, seen = {pool.submit(function, job) for job in jobs}, 0
        while pending:
            done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            counted = counter.value  # read once, since the workers keep counting
            advance(counted - seen)
            seen = counted
            for future in done:
                yield future.result()
    except KeyboardInterrupt:
        for child in {*multiprocessing.active_children()} - others:
            child.terminate()  # do not wait for the shards in progress
        raise
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, possibly because memory ran out. Run the command again with fewer workers."
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(counter: Any, level: int) -> None:
    """Set up a worker: use the shared counter and the log level of the parent, and exit with the parent."""
    global _tick
    log_from_worker(level)

    def add(count: int) -> None:
        with counter.get_lock():
            counter.value += count

    def follow() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    _tick = add
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=follow, daemon=True).start()
