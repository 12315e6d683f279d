"""One function over many jobs in a few processes, with a count of what is done inside the jobs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from pipeline.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")
Tick = Callable[[int], None]

_tick: Tick = lambda count: None  # noqa: E731 - replaced where `each` runs the work


def tick(count: int = 1) -> None:
    """Called by the work: so many more samples are done."""
    _tick(count)


def each(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, advance: Tick) -> Iterator[Result]:
    """Yield `function(job)` of every job, in the order in which they finish; what `tick` counts goes to `advance`.

    One worker runs in this process, more in processes of their own (spawned, not forked: a fork would copy the locks
    of live threads). An exception of the function goes through to the caller. Raises UserError if a process is
    killed from outside, as by a lack of memory.
    """
    global _tick
    if workers <= 1 or len(jobs) <= 1:
        _tick = advance
        try:
            yield from map(function, jobs)
        finally:
            _tick = lambda count: None  # noqa: E731
        return
    context = multiprocessing.get_context("spawn")
    counter, others = context.Value("q", 0), {*multiprocessing.active_children()}
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, _begin, (counter,))
    try:
        pending, seen = {pool.submit(function, job) for job in jobs}, 0
        while pending:
            done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            counted = counter.value  # read once: the workers go on counting
            advance(counted - seen)
            seen = counted
            for future in done:
                yield future.result()
    except KeyboardInterrupt:
        for child in {*multiprocessing.active_children()} - others:
            child.terminate()  # the person waits for no shard to be finished
        raise
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, perhaps for want of memory. Run the same again with fewer workers."
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(counter: Any) -> None:
    """Set up a worker: count into the parent's counter, and do not outlive the parent."""
    global _tick

    def add(count: int) -> None:
        with counter.get_lock():
            counter.value += count

    def follow() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    _tick = add
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=follow, daemon=True).start()
