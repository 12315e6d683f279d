"""Records verified shards, so that each is verified once per machine, not once per process or run."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

from filelock import FileLock

from pipeline.data.remote import cache_folder


def once_a_machine(path: Path, about: str, examine: Callable[[], str | None]) -> str | None:
    """Verify a file, unless it was already verified on this machine.

    While one process verifies a file, others wait. If the cache folder is not writable, each process verifies it.

    Args:
        path: The file.
        about: Text that identifies the state of the file and its expected content: size, modification time, hash.
        examine: Verifies the file. Returns the problem, or None.

    Returns:
        The problem, or None if the file is valid.
    """
    name = blake2b(f"{path.absolute()}\0{about}".encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    note = cache_folder() / "verified" / name[:2] / name
    if note.exists():
        return None
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(note.with_suffix(".lock"))
        lock.acquire()
    except OSError:
        return examine()
    try:
        if note.exists():
            return None
        fault = examine()
        if fault is None:
            note.touch()
        return fault
    finally:
        lock.release()
