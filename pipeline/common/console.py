"""Console output of commands and of training in notebooks: the only place that prints. One line per log record.

Modules use `logging.getLogger(__name__)`. Rank 0 prints information to stdout; all ranks print warnings and errors to
stderr. A warning that is the same on all ranks should be logged on rank 0 only: `if rank() == 0: log.warning(...)`.
"""

from __future__ import annotations

import logging
import os
import sys

ESCAPED = {n: f"\\x{n:02x}" for n in (*range(9), *range(11, 32), *range(127, 160))} | {
    n: f"\\u{n:04x}" for n in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
}
"""Characters that command a terminal (all controls but tab and newline, and those that turn the direction of text), and
what is printed instead."""

PACKAGES = ("pipeline", "modalities", "losses")
"""Root loggers of this program; the loggers of its modules are their children."""


class Console(logging.Handler):
    """A handler that prints and flushes each record. Stream errors are raised, as with `print`."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record to the current `sys.stdout` or `sys.stderr`, which may have been redirected."""
        if record.levelno >= logging.WARNING:
            process = f"[rank {rank()}] " if rank() else ""
            say(f"{process}{record.levelname.lower()}: {self.format(record)}", error=True)
        elif rank() == 0:
            say(self.format(record))


def printable(text: object) -> str:
    """Text that is safe to print: keys, labels and file names may contain commands to a terminal, which are escaped."""
    return str(text).translate(ESCAPED).encode("utf-8", "backslashreplace").decode()


def one_line(text: str) -> str:
    """Text that stays in its line: like `printable`, and line breaks and invalid text are escaped too."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def say(*lines: object, error: bool = False) -> None:
    """Print lines to stdout, or to stderr, so that nothing in them commands the terminal. Commands print with it."""
    print(*map(printable, lines), sep="\n", file=sys.stderr if error else sys.stdout, flush=True)


def say_data(text: str) -> None:
    """Print data, which is not changed if it goes to a file or to another program."""
    print(printable(text) if sys.stdout.isatty() else text, end="")


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
