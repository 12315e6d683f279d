"""What each loader process is reading, so that an error can name the file that a stuck process waits for."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from multiprocessing.sharedctypes import RawArray
from typing import Any

LONGEST = 1024
"""Bytes of a path that are kept, from its end."""

_slot: Any = None


def slots(workers: int) -> list[Any]:
    """Shared memory for the path that each of `workers` processes is reading."""
    return [RawArray(ctypes.c_char, LONGEST + 1) for _ in range(workers)]


def begin(slot: Any) -> None:
    """Call this in a loader process: what it reads is written to this slot from now on."""
    global _slot
    _slot = slot


def note(path: str) -> None:
    """Record that this process is about to open a file. Outside loader processes this does nothing."""
    if _slot is not None:
        _slot.value = os.fsencode(path)[-LONGEST:]


def in_words(slots: Sequence[Any]) -> str:
    """The files that the processes are reading, e.g. `worker 0: a.tar, worker 1: b.tar`."""
    return ", ".join(f"worker {n}: {os.fsdecode(slot.value) or 'nothing yet'}" for n, slot in enumerate(slots))
