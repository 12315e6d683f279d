"""Settings of the operating system that speed up training; measured with `make bench`, see docs/results.md."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Parameters of mallopt in glibc (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def wait_without_spinning() -> None:
    """Make waiting OpenMP threads release their core quickly, since the loader processes need it.

    This only has an effect before torch is imported. It does not change a value that the user has set.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def keep_freed_memory() -> None:
    """Make malloc keep freed memory, so that the activations of the next step do not cause page faults.

    This applies to this process and its forks. It does nothing if the C library is not glibc.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, 1 << 30)
            mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Turn the garbage collector off. Importing torch leaves no garbage, but looking for it takes half a second."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


@contextmanager
def garbage_of_steps_only() -> Iterator[None]:
    """Exclude all existing objects (about 10^6, most of them from libraries) from garbage collection.

    Otherwise the collector traverses them repeatedly, here and in forked processes, which then copy their memory. If
    the calling program has already frozen its objects, nothing is excluded. In the body, the collector is on, even if
    the calling program has turned it off.
    """
    running, frozen = gc.isenabled(), gc.get_freeze_count() > 0
    if not frozen:
        if running:
            gc.collect()
        gc.freeze()
    gc.enable()
    try:
        yield
    finally:
        if not running:
            gc.disable()
        if not frozen:
            gc.unfreeze()


def peak_memory() -> int:
    """Peak resident memory of this process in bytes; 0 if the system does not report it."""
    try:
        # getrusage would include the peak of the parent process.
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def yield_to_training() -> None:
    """Make this process never interrupt training, which may interrupt it. Call it in loader processes.

    Its share of the cores stays the same. A lower priority (`nice`) would leave it a tenth of a core that another
    program uses, and training would wait for data.
    """
    if hasattr(os, "SCHED_BATCH"):
        with suppress(OSError):  # some containers forbid it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
