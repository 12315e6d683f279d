"""Graceful stop: after a signal, the run writes a checkpoint and exits."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from accelerate import Accelerator


class Stopped(Exception):  # noqa: N818 - not an error
    """Raised when a run was stopped by a signal. The exit code is `128 + signal`, as shells and schedulers expect.

    Args:
        message: The message.
        number: Number of the signal.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number, self.code = number, 128 + number


SAME = 2.0
"""A signal that is repeated within this many seconds is ignored: `timeout` sends it to a process and to its group."""


class Stop:
    """Records SIGTERM and SIGINT. A second signal, later than SAME, ends the process immediately."""

    def __init__(self) -> None:
        self.number, self.since = 0, 0.0
        self.then: dict[int, Any] = {}

    @contextmanager
    def listening(self) -> Iterator[Stop]:
        """Handle SIGTERM and SIGINT inside the `with`, in the main thread."""
        if threading.current_thread() is not threading.main_thread():  # Python only handles signals there
            yield self
            return
        old: dict[int, Any] = {int(n): signal.signal(n, self._hear) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            self.then = old
            for number in old.keys() - {self.number}:  # the received signal may be repeated during exit
                signal.signal(number, old[number])

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.number:
            self.number, self.since = number, now
        elif now - self.since > SAME:
            signal.signal(number, self.then.get(number, signal.SIG_DFL))
            signal.raise_signal(number)

    def asked(self, accelerator: Accelerator) -> bool:
        """Whether any rank received a signal. All ranks must get the same answer; otherwise they would deadlock."""
        if accelerator.num_processes == 1:
            return self.number > 0
        if self.number:
            accelerator.set_trigger()
        asked: bool = accelerator.check_trigger()
        return asked
