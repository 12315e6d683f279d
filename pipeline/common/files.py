"""Atomic file writes, and file hashes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import time
from pathlib import Path


def write_atomic(path: Path, data: bytes) -> None:
    """Write a small file atomically: readers see either the old or the complete new content.

    Args:
        path: The file. Its folder must exist.
        data: The content.
    """
    part = part_path(path)
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def remove_stale_parts(folder: Path) -> None:
    """Remove the temporary files of killed writers: those of ended processes, and of other machines after one day."""
    for part in folder.glob("*.part-*"):
        owner = re.fullmatch(r".+\.part-(.+)-(\d+)", part.name)
        with contextlib.suppress(FileNotFoundError):  # another writer may be cleaning too
            gone = owner and owner[1] == host() and not alive(int(owner[2]))
            if owner and (gone or time.time() - part.stat().st_mtime > 86_400):
                part.unlink()


def part_path(path: Path) -> Path:
    """The temporary path of an incomplete file, unique to this machine and process."""
    return path.with_name(f"{path.name}.part-{host()}-{os.getpid()}")


def host() -> str:
    """The name of this machine."""
    return platform.node() or "localhost"


def alive(pid: int) -> bool:
    """Whether a process is running on this machine."""
    if os.name != "posix":  # on Windows, signal 0 does more than test for the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sha256(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
