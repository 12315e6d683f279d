"""One owner at a time for a folder that a command writes: a second process is told who holds it."""

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
"""Seconds to wait for the children of an owner that was killed: they hold its lock until they end."""


@contextmanager
def owned(path: Path, work: str = "") -> Iterator[None]:
    """Own a folder, or any other output, while it is written.

    The lock is a hidden file beside it, `.NAME.lock`, which the system releases when its owner dies. `.NAME.owner`
    tells who that is. Both are removed at the end.

    Args:
        path: The output. It need not exist.
        work: What is written, if several processes may write the same together; empty if only one may.

    Raises:
        UserError: Another process owns it, and does not do the same work.
    """
    path = path.absolute()
    lock, note = (path.with_name(f".{path.name}.{kind}") for kind in ("lock", "owner"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = _acquire(lock, note, path, work)
        if held is not None:
            write_atomic(note, f"{host()}\n{os.getpid()}\n{work}".encode())
    except (OSError, NotImplementedError) as error:
        log.warning(f"{path}: no lock could be made ({error}). Do not let two processes write it at once.")
        held = None
    try:
        yield
    finally:
        if held is not None:
            with contextlib.suppress(OSError):  # the lock is released in any case
                note.unlink(missing_ok=True)
                lock.unlink(missing_ok=True)
            held.release()


def _acquire(lock: Path, note: Path, path: Path, work: str) -> FileLock | None:
    """Take the lock; None if its owner does the same work."""
    end = time.monotonic() + PATIENCE
    while True:
        held = FileLock(lock)
        try:
            held.acquire(timeout=0)
        except Timeout:
            owner, pid, theirs = _read(note)
            if work and work == theirs:
                return None
            ending = not pid or (owner == host() and not alive(int(pid)))
            if ending and time.monotonic() < end:
                time.sleep(0.1)
                continue
            raise UserError(
                f"{path}: process {pid or '(unknown)'} on host {owner or '(unknown)'} is writing it. Wait until it "
                f"has ended, stop it (on that host: kill {pid or 'PID'}), or choose another folder."
            ) from None
        if _is_current(held, lock):
            return held
        held.release()  # its owner has just removed the file; another process may have locked a new one


def _is_current(held: FileLock, lock: Path) -> bool:
    """Whether the locked file is the one at the path; on Windows, a file that is open cannot be removed."""
    number = held._context.lock_file_fd
    try:
        return number is None or os.path.samestat(os.fstat(number), lock.stat())
    except FileNotFoundError:
        return False


def _read(note: Path) -> tuple[str, str, str]:
    """Host, process and work of the owner; empty if it has not written them yet."""
    try:
        owner, pid, work = note.read_text().split("\n", 2)
    except (OSError, ValueError):
        return "", "", ""
    return owner, pid if pid.isdigit() else "", work
