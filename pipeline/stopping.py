"""A polite end: the system asks by a signal, the run writes a checkpoint and leaves."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from accelerate import Accelerator


class Stopped(Exception):  # noqa: N818 - nothing is wrong
    """A run was asked to end and did; exit code `128 + signal`, as shells and schedulers expect."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.code = 128 + number


SAME = 2.0
"""Seconds in which a signal that comes again is the same one: `timeout` sends it to the process and to its group."""


class Stop:
    """Whether SIGTERM or SIGINT has come; a second one, later than SAME, ends the process at once."""

    def __init__(self) -> None:
        self.number, self.since = 0, 0.0

    @contextmanager
    def listening(self) -> Iterator[Stop]:
        """Hear SIGTERM and SIGINT inside the `with`, in the main thread."""
        if threading.current_thread() is not threading.main_thread():  # only there Python hears signals
            yield self
            return
        old = {number: signal.signal(number, self._hear) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.number:
            self.number, self.since = number, now
        elif now - self.since > SAME:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def asked(self, accelerator: Accelerator) -> bool:
        """True on all ranks in the same step, if any of them was asked; they would wait for each other otherwise."""
        if accelerator.num_processes == 1:
            return self.number > 0
        if self.number:
            accelerator.set_trigger()
        asked: bool = accelerator.check_trigger()
        return asked
