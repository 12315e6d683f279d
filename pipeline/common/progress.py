"""Progress of long-running work: a live bar on a terminal, otherwise a plain line every 30 seconds."""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """A context manager that shows progress on stderr.

    Nothing is shown with `--quiet`, or if the level of the logger `pipeline` is WARNING or higher.

    Args:
        what: What is done, e.g. `packing`.
        total: Number of units.
        unit: What is counted.

    Example:
        ```python
        with Progress("packing", total=1000) as progress:
            progress.advance(1)
        ```
    """

    SECONDS = 30.0
    """Seconds between two plain lines."""

    def __init__(self, what: str, total: int, unit: str = "samples") -> None:
        self.what, self.total, self.unit = what, total, unit
        self.console = Console(stderr=True, highlight=False)
        self.done = 0
        self.begun = self.said = time.monotonic()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        self.shown = logging.getLogger("pipeline").level <= logging.INFO  # NOTSET included
        live = self.shown and self.console.is_terminal
        self.bar = Bar(*columns, TimeRemainingColumn(), console=self.console) if live else None
        self.task = self.bar.add_task(what, total=total, rate="") if self.bar else None

    def __enter__(self) -> Progress:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def advance(self, count: int) -> None:
        """Count `count` more units as done."""
        self.done += count
        now = time.monotonic()
        rate = self.done / max(now - self.begun, 1e-3)
        if self.bar and self.task is not None:
            self.bar.update(self.task, completed=self.done, rate=f"{rate:.0f} {self.unit}/s")
        elif self.shown and now - self.said >= self.SECONDS:
            self.said = now
            self.console.print(f"{self.what}: {self.done} of {self.total} {self.unit}{self._left(rate)}")

    def _left(self, rate: float) -> str:
        if not self.done:
            return ""
        left = timedelta(seconds=round(max(self.total - self.done, 0) / rate))
        return f", {rate:.0f}/s, {left} left" if rate >= 1 else f", {60 * rate:.2g}/min, {left} left"
