"""Tracks what each loader process is reading, so an error can state the file that a stuck process waits for."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from multiprocessing.sharedctypes import RawArray
from typing import Any

LONGEST = 1024
"""Number of bytes of a path that are kept (its end)."""

_slot: Any = None


def slots(workers: int) -> list[Any]:
    """Shared memory for the path that each of `workers` processes is reading."""
    return [RawArray(ctypes.c_char, LONGEST + 1) for _ in range(workers)]


def begin(slot: Any) -> None:
    """Call this in a loader process: from then on, the path that it reads is written to this slot."""
    global _slot
    _slot = slot


def note(path: str) -> None:
    """Record that this process is about to open a file. Outside loader processes this does nothing."""
    if _slot is not None:
        _slot.value = os.fsencode(path)[-LONGEST:]


def in_words(slots: Sequence[Any]) -> str:
    """The files that the processes are reading, as text, e.g. `worker 0: a.tar, worker 1: b.tar`."""
    return ", ".join(f"worker {n}: {os.fsdecode(slot.value) or 'nothing yet'}" for n, slot in enumerate(slots))
