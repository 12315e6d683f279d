"""How far a long piece of work is: a live bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """`with Progress("packing", total) as progress: progress.advance(1)`, shown on stderr."""

    SECONDS = 30.0
    """Between two plain lines: enough for a log file."""

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
        self.bar = Bar(*columns, TimeRemainingColumn(), console=self.console) if self.console.is_terminal else None
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
        """Count so many more as done."""
        self.done += count
        now = time.monotonic()
        rate = self.done / max(now - self.begun, 1e-3)
        if self.bar and self.task is not None:
            self.bar.update(self.task, completed=self.done, rate=f"{rate:.0f} {self.unit}/s")
        elif now - self.said >= self.SECONDS:
            self.said = now
            left = (self.total - self.done) / max(rate, 1e-9)
            self.console.print(f"{self.what}: {self.done} of {self.total} {self.unit}, {rate:.0f}/s, {left:.0f} s left")
