"""Console output of commands and of training in notebooks: one line per log record.

Modules use `logging.getLogger(__name__)`. Rank 0 prints information to stdout; all ranks print warnings and errors to
stderr. A warning that is the same on all ranks should be logged on rank 0 only: `if rank() == 0: log.warning(...)`.
"""

from __future__ import annotations

import logging
import os
import sys

PACKAGES = ("pipeline", "modalities", "losses")
"""Root loggers of this program; the loggers of its modules are their children."""


class Console(logging.Handler):
    """A handler that prints and flushes each record. Stream errors are raised, as with `print`."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record to the current `sys.stdout` or `sys.stderr`, which may have been redirected."""
        if record.levelno >= logging.WARNING:
            process = f"[rank {rank()}] " if rank() else ""
            print(f"{process}{record.levelname.lower()}: {self.format(record)}", file=sys.stderr, flush=True)
        elif rank() == 0:
            print(self.format(record), flush=True)


def rank() -> int:
    """The global rank of this process; 0 without a launcher."""
    return _number("RANK", 0)


def world_size() -> int:
    """The number of processes that the launcher has started; 1 without a launcher."""
    return _number("WORLD_SIZE", 1)


def _number(name: str, default: int) -> int:
    """An environment variable of the launcher. In pods and old shells, it may be empty or not a number."""
    value = os.environ.get(name, "").strip()
    return int(value) if value.isascii() and value.isdigit() else default


def log_to_console(level: int = logging.INFO) -> None:
    """Print the log of this program, replacing earlier handlers of its loggers.

    Args:
        level: Minimum level.
    """
    for name in PACKAGES:
        logger = logging.getLogger(name)
        logger.handlers = [Console()]
        logger.propagate = False  # a handler of the root logger would print it again
        logger.setLevel(level)


def log_to_console_by_default() -> None:
    """Print the log of this program, unless the user has configured logging.

    Logging counts as configured if the logger `pipeline` has a level or a handler, or is enabled for INFO.
    """
    logger = logging.getLogger("pipeline")
    if not (logger.level or logger.handlers or logger.isEnabledFor(logging.INFO)):
        log_to_console()


def log_level() -> int:
    """The effective log level of this program, to pass to `log_from_worker` in a worker process."""
    return logging.getLogger("pipeline").getEffectiveLevel()


def log_from_worker(level: int) -> None:
    """Print the log of a worker process. A forked process inherits the handlers of its parent and keeps them."""
    if not logging.getLogger("pipeline").hasHandlers():
        log_to_console(level)
