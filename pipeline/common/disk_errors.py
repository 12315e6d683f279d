"""Errors of the operating system that are caused by the machine, never by a sample, and how to fix them."""

from __future__ import annotations

import errno
from pathlib import Path

from pipeline.common.errors import UserError

_FULL = "no space left. Incomplete files are ignored; free disk space and run the command again with `--resume`."
_FILES = "too many open files. Raise the limit (`ulimit -n 65536`), or lower data.workers."
_DENIED = "permission denied. Change the permissions, or choose another path."

MACHINE = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,  # disk quota of the user
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EIO: "the disk failed (input/output error). Check it (`dmesg`) or its network.",
    errno.ESTALE: "the network file system lost the file (stale handle). Mount it again.",
    errno.ENOMEM: "out of memory. Lower data.workers, data.shuffle or data.batch_size.",
}
"""errno -> what is wrong with a file, whatever it holds, and how to fix it."""

PLACES = MACHINE | {
    errno.EROFS: "the file system is read-only. Choose another path.",
    errno.ENOTDIR: "is not a folder, or one of its parents is a file. Choose another path.",
    errno.EEXIST: "is in the way. Remove it, or choose another path.",
    errno.ELOOP: "is a link to itself. Remove it.",
    errno.EISDIR: "is a folder. Pass the path of a file.",
    errno.ENAMETOOLONG: "the name is too long. Choose a shorter one.",
}
"""errno -> the problem with a path and how to fix it."""


def machine_fault(error: Exception, place: str | Path) -> UserError | None:
    """The error for a fault of the machine; None if the file itself may be at fault.

    Args:
        error: The error of reading or writing a file.
        place: The file, if the error does not name it.
    """
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, PermissionError) and number is None:  # stores that are no disks give none
        number = errno.EACCES
    if number not in MACHINE:
        return None
    return UserError(f"{getattr(error, 'filename', None) or place}: {MACHINE[number]}")
