"""What training asks of the operating system; measured with `make bench`, explained in docs/results.md."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The parameters of glibc's mallopt (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def wait_without_spinning() -> None:
    """Let an OpenMP thread that waits give its core away soon: the loader's processes have work for it.

    Takes effect only before torch is imported. A setting of the user's own stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def keep_freed_memory() -> None:
    """Let malloc keep what is freed, so that each step's activations find their pages instead of faulting them in.

    For this process and those forked from it; does nothing where the C library is not glibc.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, 1 << 30)
            mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


@contextmanager
def garbage_of_steps_only() -> Iterator[None]:
    """Let the garbage collector pass over what is there already, some 10^5 objects of libraries.

    Otherwise it looks at all of them again and again, here and in the processes forked from here.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def peak_memory() -> int:
    """The largest resident size in bytes that this process has had; 0 where the system does not say."""
    try:
        # Not getrusage: its figure begins with that of the process that started this one.
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def yield_to_training() -> None:
    """Let the training process go first: a loader's process fills the time that it leaves over."""
    if hasattr(os, "nice"):
        os.nice(10)
