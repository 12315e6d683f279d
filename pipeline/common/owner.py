"""Locks the output folder of a command: a second process fails with a message that identifies the owner."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.common.errors import UserError
from pipeline.common.files import alive, host, write_atomic

log = logging.getLogger(__name__)

PATIENCE = 30.0
"""Seconds to wait for the child processes of a killed owner, which hold its lock until they end."""


@contextmanager
def owned(path: Path, work: str = "", patience: float = 0.0) -> Iterator[None]:
    """Hold the lock of a folder, or any other output, while it is written.

    The lock is a hidden file next to it, `.NAME.lock`, which the system releases when the owner dies. `.NAME.owner`
    identifies the owner. Both are removed at the end.

    Args:
        path: The output. It need not exist.
        work: Description of the work. Processes with the same description may write together; empty means only one may.
        patience: Seconds to wait for another owner.

    Raises:
        UserError: Another process holds the lock and does different work.
    """
    path = path.absolute()
    lock, note = (path.with_name(f".{path.name}.{kind}") for kind in ("lock", "owner"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = _acquire(lock, note, path, work, patience)
        if held is not None:
            write_atomic(note, f"{host()}\n{os.getpid()}\n{work}".encode())
    except (OSError, NotImplementedError) as error:
        log.warning(f"{path}: could not be locked ({error}). Make sure that only one process writes to it.")
        held = None
    try:
        yield
    finally:
        if held is not None:
            with contextlib.suppress(OSError):  # the lock is released in any case
                note.unlink(missing_ok=True)
                lock.unlink(missing_ok=True)
            held.release()


def _acquire(lock: Path, note: Path, path: Path, work: str, patience: float) -> FileLock | None:
    """Acquire the lock; None if its owner does the same work."""
    begun = time.monotonic()
    while True:
        held = FileLock(lock)
        try:
            held.acquire(timeout=0)
        except Timeout:
            owner, pid, theirs = _read(note)
            if work and work == theirs:
                return None
            ending = not pid or (owner == host() and not alive(int(pid)))
            if time.monotonic() < begun + (max(patience, PATIENCE) if ending else patience):
                time.sleep(0.1)
                continue
            raise UserError(
                f"{path}: process {pid or '(unknown)'} on host {owner or '(unknown)'} is writing to it. Wait until "
                f"it ends, stop it (on that host: kill {pid or 'PID'}), or choose another folder."
            ) from None
        if _is_current(held, lock):
            return held
        held.release()  # the previous owner has just removed the file, and another process may have locked a new one


def _is_current(held: FileLock, lock: Path) -> bool:
    """Whether the locked file is still the one at the path. Always true on Windows: open files cannot be removed."""
    number = held._context.lock_file_fd
    try:
        return number is None or os.path.samestat(os.fstat(number), lock.stat())
    except FileNotFoundError:
        return False


def _read(note: Path) -> tuple[str, str, str]:
    """Host, process ID and work of the owner; empty if it has not written them yet."""
    try:
        owner, pid, work = note.read_text().split("\n", 2)
    except (OSError, ValueError):
        return "", "", ""
    return owner, pid if pid.isdigit() else "", work
